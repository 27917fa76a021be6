# Packets into TCP segments: link layers, tunnels, IP (docs/design.md D1 to D5). Every packet is one segment or counted under one name.
# Must not know: connections, HTTP, files. Knows capture time only (for fragments).

cdef enum:
    DECODE_DEPTH = 16             # IP headers within each other
    DECODE_TAGS = 64              # VLAN tags and MPLS labels
    DECODE_TYPES = 64             # EtherTypes and link types that are counted by number

cdef enum:                        # why a packet gave no segment; by protocol: Decoder.protocols
    SKIP_TRUNCATED = 0            # a header is not there whole
    SKIP_MALFORMED_IP = 1
    SKIP_MALFORMED_TCP = 2
    SKIP_NESTING = 3
    SKIP_FRAGMENT_WAITING = 4     # part of a datagram that is put together later
    SKIP_FRAGMENT_OVERLAP = 5
    SKIP_FRAGMENT_TOO_LONG = 6
    SKIP_FRAGMENT_LIMIT = 7
    SKIP_LLC = 8
    SKIP_PPP = 9
    SKIP_MPLS = 10
    SKIP_GRE = 11
    SKIP_NFLOG = 12
    SKIP_EMPTY = 13
    SKIP_NULL_FAMILY = 14
    SKIP_COUNT = 15

cdef tuple DECODE_SKIPS = ("truncated", "malformed_ip", "malformed_tcp", "nesting", "fragment_waiting", "fragment_overlap", "fragment_too_long",
                           "fragment_limit", "llc", "ppp", "mpls", "gre", "nflog", "empty", "null_family")
cdef dict DECODE_PROTOCOLS = {1: "icmp", 2: "igmp", 17: "udp", 50: "esp", 58: "icmpv6", 59: "no_next_header", 89: "ospf", 103: "pim", 112: "vrrp",
                              132: "sctp", 255: "ip_protocol_255"}
cdef dict DECODE_ETHERTYPES = {0x0806: "arp", 0x8035: "rarp", 0x88CC: "lldp", 0x8863: "pppoe_discovery", 0x888E: "eapol", 0x88E5: "macsec",
                               0x9000: "loopback_test", 0x0004: "llc"}

cdef uint64_t DECODE_MIX = 0x9E3779B97F4A7C15

cdef enum:                        # layers around TCP/IP that are told of: Decoder.layers
    LAYER_VLAN = 0
    LAYER_MPLS = 1
    LAYER_PPP = 2
    LAYER_GRE = 3
    LAYER_VXLAN = 4
    LAYER_GENEVE = 5
    LAYER_GTP = 6
    LAYER_L2TP = 7
    LAYER_TEREDO = 8
    LAYER_IP_IN_IP = 9
    LAYER_ETHERIP = 10
    LAYER_NSH = 11
    LAYER_COUNT = 12

DECODE_LAYERS = ("vlan", "mpls", "ppp", "gre", "vxlan", "geneve", "gtp", "l2tp", "teredo", "ip_in_ip", "etherip", "nsh")
#: by the numbers of tcpdump.org
DECODE_LINKS = {0: "loopback", 1: "ethernet", 9: "ppp", 12: "raw", 14: "raw", 50: "ppp", 101: "raw", 104: "chdlc", 108: "loopback", 113: "linux_sll",
                228: "raw", 229: "raw", 239: "nflog", 276: "linux_sll2"}

cdef struct NumberCount:
    uint32_t number
    int64_t count

cdef struct Decoder:
    int64_t skips[SKIP_COUNT]
    int64_t protocols[256]
    NumberCount types[DECODE_TYPES]
    NumberCount links[DECODE_TYPES]
    NumberCount used_links[DECODE_TYPES]      # of packets that were looked into the slow way
    int64_t usual                 # of those that needed no more than one look: Ethernet
    int64_t layers[LAYER_COUNT]
    int64_t other_types           # beyond the table
    int64_t cut_frames            # packets of which the capture holds less than the wire had
    int64_t incomplete_datagrams  # datagrams of which a fragment never came
    bint split_by_network
    Fragments fragments

cdef enum DecodeStage:
    AT_ETHERNET
    AT_TYPE
    AT_IP                         # version by its first nibble
    AT_PROTOCOL
    AT_PPP
    AT_MPLS


cdef inline uint32_t be16(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef int decoder_init(Decoder* d) noexcept:
    memset(d, 0, sizeof(Decoder))
    return fragments_init(&d.fragments)


cdef void decoder_free(Decoder* d) noexcept nogil:
    fragments_free(&d.fragments)


cdef int decode_skip(Decoder* d, int reason) noexcept nogil:
    count_add(&d.skips[reason], 1)
    return 0


cdef int decode_count(Decoder* d, NumberCount* table, uint32_t number) noexcept nogil:
    cdef int i
    for i in range(DECODE_TYPES):
        if table[i].number == number and table[i].count:
            count_add(&table[i].count, 1)
            return 0
        if table[i].count == 0:
            table[i].number = number
            count_add(&table[i].count, 1)
            return 0
    count_add(&d.other_types, 1)
    return 0


cdef dict decoder_skipped(Decoder* d):
    """Packets that gave no segment, by name."""
    cdef dict out = {}
    cdef int i
    for i in range(SKIP_COUNT):
        if d.skips[i]:
            out[DECODE_SKIPS[i]] = d.skips[i]
    for i in range(256):
        if d.protocols[i]:
            out[DECODE_PROTOCOLS.get(i, f"ip_protocol_{i}")] = d.protocols[i]
    for i in range(DECODE_TYPES):
        if d.types[i].count:
            name = DECODE_ETHERTYPES.get(d.types[i].number, f"ethertype_0x{d.types[i].number:04x}")
            out[name] = out.get(name, 0) + d.types[i].count
        if d.links[i].count:
            out[f"link_{d.links[i].number}"] = d.links[i].count
    if d.other_types:
        out["other"] = d.other_types
    return out


cdef dict decoder_layers(Decoder* d):
    """Packets by link and by what was around TCP/IP; a packet counts in each layer that it has."""
    cdef int i
    cdef dict links = {"ethernet": d.usual} if d.usual else {}
    for i in range(DECODE_TYPES):
        if d.used_links[i].count:
            name = DECODE_LINKS.get(d.used_links[i].number, f"link_{d.used_links[i].number}")
            links[name] = links.get(name, 0) + d.used_links[i].count
    return {"links": links, "layers": {DECODE_LAYERS[i]: d.layers[i] for i in range(<int>LAYER_COUNT) if d.layers[i]}}


cdef inline int decode_tcp(Decoder* d, Segment* s, const uint8_t* p, uint32_t n, uint32_t missing) noexcept nogil:
    cdef uint32_t header
    if n < 20:
        return decode_skip(d, SKIP_TRUNCATED if missing else SKIP_MALFORMED_TCP)
    header = (p[12] >> 4) * 4
    if header < 20:
        return decode_skip(d, SKIP_MALFORMED_TCP)
    if header > n:
        return decode_skip(d, SKIP_TRUNCATED if missing else SKIP_MALFORMED_TCP)
    s.sport = <uint16_t>be16(p)
    s.dport = <uint16_t>be16(p + 2)
    s.seq = be32(p + 4)
    s.ack = be32(p + 8)
    s.flags = p[13]
    s.data = p + header
    s.len = n - header
    s.missing = missing
    return 1


cdef extern from "fastpath/usual.h" nogil:
    uint32_t usual_payload(const uint8_t* p, uint32_t n, uint32_t cut, uint32_t* length, uint32_t* missing)
    void usual_mapped(uint8_t* address, uint32_t raw)
    uint32_t usual_load32(const uint8_t* p)
    uint64_t usual_key(const uint8_t* p, const uint64_t* secret, uint8_t* side)


cdef inline bint decode_usual(Decoder* d, const Packet* packet, Segment* s) noexcept nogil:
    """decode() of the usual packet: Ethernet, IPv4 without options or fragments, TCP. False: it is none, nothing was counted."""
    cdef const uint8_t* p = packet.data
    cdef uint32_t cut = packet.wirelen - packet.caplen if packet.wirelen > packet.caplen else 0
    cdef uint32_t at
    if packet.link != 1 or packet.caplen < 54 or d.split_by_network:
        return False
    at = usual_payload(p, packet.caplen, cut, &s.len, &s.missing)
    if at == 0:
        return False
    if cut:
        count_add(&d.cut_frames, 1)
    s.ts_ns = packet.ts_ns
    s.number = packet.number
    s.source = packet.source
    s.network = 0
    s.lasting = 1
    usual_mapped(s.src, usual_load32(p + 26))
    usual_mapped(s.dst, usual_load32(p + 30))
    s.sport = <uint16_t>be16(p + 34)
    s.dport = <uint16_t>be16(p + 36)
    s.seq = be32(p + 38)
    s.ack = be32(p + 42)
    s.flags = p[47]
    s.data = p + at
    d.usual += 1
    return True


cdef int decode(Decoder* d, const Packet* packet, Segment* s) noexcept nogil:
    """The TCP segment inside a packet. 1: s is filled, its data borrows from the packet, or from the decoder until the next call; 0: none, counted."""
    return 1 if decode_usual(d, packet, s) else decode_slow(d, packet, s)


cdef int decode_slow(Decoder* d, const Packet* packet, Segment* s) noexcept nogil:
    cdef uint32_t cut = packet.wirelen - packet.caplen if packet.wirelen > packet.caplen else 0
    cdef const uint8_t* p = packet.data
    cdef uint32_t n = packet.caplen
    cdef uint32_t link = packet.link
    cdef DecodeStage at = AT_IP
    cdef uint32_t kind = 0        # EtherType, IP protocol
    cdef uint32_t header, total, i, flags, port
    cdef uint32_t missing = cut
    cdef int depth = 0
    cdef int tags = 0
    cdef int answer
    cdef uint64_t network = packet.iface if d.split_by_network else 0
    cdef const uint8_t* whole = NULL
    cdef uint32_t whole_len = 0
    if cut:
        count_add(&d.cut_frames, 1)
    s.ts_ns = packet.ts_ns
    s.number = packet.number
    s.source = packet.source
    s.network = 0
    s.lasting = 1
    decode_count(d, d.used_links, link)
    if n == 0:
        return decode_skip(d, SKIP_EMPTY)
    # the link layer
    if link == 1:
        at = AT_ETHERNET
    elif link == 12 or link == 14 or link == 101 or link == 228 or link == 229:
        at = AT_IP
    elif link == 113:
        if n < 16:
            return decode_skip(d, SKIP_TRUNCATED)
        kind = be16(p + 14)
        p += 16
        n -= 16
        at = AT_TYPE
    elif link == 276:
        if n < 20:
            return decode_skip(d, SKIP_TRUNCATED)
        kind = be16(p)
        p += 20
        n -= 20
        at = AT_TYPE
    elif link == 0 or link == 108:
        if n < 4:
            return decode_skip(d, SKIP_TRUNCATED)
        kind = be32(p)
        if kind > 0xFFFF:         # the other byte order
            kind = (kind >> 24) | ((kind >> 8) & 0xFF00)
        if kind != 2 and kind != 10 and kind != 24 and kind != 28 and kind != 30:
            return decode_skip(d, SKIP_NULL_FAMILY)
        p += 4
        n -= 4
        at = AT_IP
    elif link == 104:
        if n < 4:
            return decode_skip(d, SKIP_TRUNCATED)
        kind = be16(p + 2)
        p += 4
        n -= 4
        at = AT_TYPE
    elif link == 9 or link == 50:
        if n >= 4 and (p[0] == 0x0F or p[0] == 0x8F) and p[1] == 0:
            kind = be16(p + 2)    # Cisco HDLC within
            p += 4
            n -= 4
            at = AT_TYPE
        else:
            at = AT_PPP
    elif link == 239:
        # NFLOG: family, version, resource, then records of length and type in the byte order of the recorder
        if n < 4:
            return decode_skip(d, SKIP_TRUNCATED)
        i = 4
        while True:
            if n - i < 4:
                return decode_skip(d, SKIP_NFLOG)
            total = p[i] | (<uint32_t>p[i + 1] << 8)
            kind = p[i + 2] | (<uint32_t>p[i + 3] << 8)
            if total > n - i and be16(p + i) <= n - i:
                total = be16(p + i)
                kind = be16(p + i + 2)
            elif kind > 255:
                kind = be16(p + i + 2)
                total = be16(p + i)
            if total < 4:
                return decode_skip(d, SKIP_NFLOG)
            if (kind & 0x7FFF) == 9:
                break
            total = (total + 3) & ~<uint32_t>3
            if total > n - i:
                return decode_skip(d, SKIP_NFLOG)
            i += total
        p += i + 4
        n -= i + 4
        if total - 4 < n:
            n = total - 4
        at = AT_IP
    else:
        return decode_count(d, d.links, link)
    while True:
        if at == AT_ETHERNET:
            if n < 14:
                return decode_skip(d, SKIP_TRUNCATED)
            kind = be16(p + 12)
            p += 14
            n -= 14
            at = AT_TYPE
        elif at == AT_TYPE:
            if kind == 0x0800 or kind == 0x86DD:
                at = AT_IP
            elif kind == 0x8100 or kind == 0x88A8 or kind == 0x9100 or kind == 0x9200 or kind == 0x9300 or kind == 0x8926:
                tags += 1
                if tags > DECODE_TAGS:
                    return decode_skip(d, SKIP_NESTING)
                header = 6 if kind == 0x8926 else 4
                if n < header:
                    return decode_skip(d, SKIP_TRUNCATED)
                count_add(&d.layers[LAYER_VLAN], 1)
                network = network * DECODE_MIX + (be16(p) & 0xFFF) + 1
                kind = be16(p + header - 2)
                p += header
                n -= header
            elif kind == 0x8847 or kind == 0x8848:
                at = AT_MPLS
            elif kind == 0x8864:
                if n < 6:
                    return decode_skip(d, SKIP_TRUNCATED)
                total = be16(p + 4)
                network = network * DECODE_MIX + be16(p + 2) + 0x10000
                p += 6
                n -= 6
                if total and total < n:
                    n = total
                at = AT_PPP
            elif kind == 0x6558:
                depth += 1
                if depth > DECODE_DEPTH:
                    return decode_skip(d, SKIP_NESTING)
                at = AT_ETHERNET
            elif kind == 0x894F:  # NSH (RFC 8300)
                count_add(&d.layers[LAYER_NSH], 1)
                if n < 8:
                    return decode_skip(d, SKIP_TRUNCATED)
                header = (p[1] & 0x3F) * 4
                i = p[3]
                if header < 8 or header > n:
                    return decode_skip(d, SKIP_TRUNCATED)
                depth += 1
                if depth > DECODE_DEPTH:
                    return decode_skip(d, SKIP_NESTING)
                p += header
                n -= header
                if i == 1 or i == 2:
                    at = AT_IP
                elif i == 3:
                    at = AT_ETHERNET
                else:
                    return decode_count(d, d.types, 0x894F)
            elif kind <= 1500:    # 802.3 with 802.2; for cooked captures 4 says the same
                if n < 3:
                    return decode_skip(d, SKIP_TRUNCATED)
                if kind > 4 and kind < n:
                    n = kind
                if n >= 8 and p[0] == 0xAA and p[1] == 0xAA and p[2] == 3:
                    kind = be16(p + 6)
                    if kind <= 1500:
                        return decode_skip(d, SKIP_LLC)
                    p += 8
                    n -= 8
                elif p[0] == 6 and p[1] == 6 and p[2] == 3:
                    p += 3
                    n -= 3
                    at = AT_IP
                else:
                    return decode_skip(d, SKIP_LLC)
            else:
                return decode_count(d, d.types, kind)
        elif at == AT_PPP:
            count_add(&d.layers[LAYER_PPP], 1)
            if n >= 2 and p[0] == 0xFF and p[1] == 3:
                p += 2
                n -= 2
            if n < 2:
                return decode_skip(d, SKIP_TRUNCATED)
            if p[0] & 1:          # protocol field compression (RFC 1661 6.5)
                kind = p[0]
                p += 1
                n -= 1
            else:
                kind = be16(p)
                p += 2
                n -= 2
            if kind == 0x21 or kind == 0x57:
                at = AT_IP
            elif kind == 0x281 or kind == 0x283:
                at = AT_MPLS
            else:
                return decode_skip(d, SKIP_PPP)
        elif at == AT_MPLS:
            count_add(&d.layers[LAYER_MPLS], 1)
            while True:
                tags += 1
                if tags > DECODE_TAGS:
                    return decode_skip(d, SKIP_NESTING)
                if n < 4:
                    return decode_skip(d, SKIP_TRUNCATED)
                i = p[2] & 1
                p += 4
                n -= 4
                if i:
                    break
            if n == 0:
                return decode_skip(d, SKIP_TRUNCATED)
            if p[0] >> 4 == 4 or p[0] >> 4 == 6:
                at = AT_IP
            else:
                # a pseudo-wire: Ethernet, behind a control word (RFC 4385) that begins with a zero nibble, or bare
                if n >= 18 and p[0] >> 4 == 0 and decode_is_type(be16(p + 16)):
                    p += 4
                    n -= 4
                elif not (n >= 14 and decode_is_type(be16(p + 12))):
                    return decode_skip(d, SKIP_MPLS)
                at = AT_ETHERNET
        elif at == AT_IP:
            depth += 1
            if depth > DECODE_DEPTH:
                return decode_skip(d, SKIP_NESTING)
            if n < 1:
                return decode_skip(d, SKIP_TRUNCATED)
            if p[0] >> 4 == 4:
                if n < 20:
                    return decode_skip(d, SKIP_TRUNCATED)
                header = (p[0] & 15) * 4
                total = be16(p + 2)
                if header < 20 or (total and total < header):
                    return decode_skip(d, SKIP_MALFORMED_IP)
                if header > n:
                    return decode_skip(d, SKIP_TRUNCATED)
                missing = 0
                if total == 0:
                    missing = cut # segmentation offload: the frame's length counts (D2)
                elif total <= n:
                    n = total
                else:
                    missing = total - n if total - n < cut else cut
                memset(s.src, 0, 10)
                memset(s.dst, 0, 10)
                s.src[10] = s.src[11] = s.dst[10] = s.dst[11] = 255
                memcpy(s.src + 12, p + 12, 4)
                memcpy(s.dst + 12, p + 16, 4)
                kind = p[9]
                flags = be16(p + 6)
                if flags & 0x3FFF:
                    answer = fragment_add(d, s, be16(p + 4), kind, (flags & 0x1FFF) * 8, (flags & 0x2000) != 0, p + header, n - header, missing,
                                          packet.ts_ns, &whole, &whole_len)
                    if answer == 0:
                        return 0
                    p = whole
                    n = whole_len
                    cut = 0
                    missing = 0
                    s.lasting = 0
                else:
                    p += header
                    n -= header
                at = AT_PROTOCOL
            elif p[0] >> 4 == 6:
                if n < 40:
                    return decode_skip(d, SKIP_TRUNCATED)
                total = be16(p + 4)
                missing = 0
                memcpy(s.src, p + 8, 16)
                memcpy(s.dst, p + 24, 16)
                kind = p[6]
                p += 40
                n -= 40
                if total == 0:
                    missing = cut # jumbogram or offload
                elif total <= n:
                    n = total
                else:
                    missing = total - n if total - n < cut else cut
                at = AT_PROTOCOL
            else:
                return decode_skip(d, SKIP_MALFORMED_IP)
        else:
            # AT_PROTOCOL: what IP carries
            if kind == 6:
                s.network = network
                return decode_tcp(d, s, p, n, missing)
            if kind == 0 or kind == 43 or kind == 60 or kind == 135 or kind == 139 or kind == 140:
                tags += 1
                if tags > DECODE_TAGS:
                    return decode_skip(d, SKIP_NESTING)
                if n < 8:
                    return decode_skip(d, SKIP_TRUNCATED)
                header = (<uint32_t>p[1] + 1) * 8
                if header > n:
                    return decode_skip(d, SKIP_TRUNCATED)
                kind = p[0]
                p += header
                n -= header
            elif kind == 51:      # AH (RFC 4302): authenticated, not encrypted
                tags += 1
                if tags > DECODE_TAGS:
                    return decode_skip(d, SKIP_NESTING)
                if n < 12:
                    return decode_skip(d, SKIP_TRUNCATED)
                header = (<uint32_t>p[1] + 2) * 4
                if header > n:
                    return decode_skip(d, SKIP_TRUNCATED)
                kind = p[0]
                p += header
                n -= header
            elif kind == 44:
                tags += 1
                if tags > DECODE_TAGS:
                    return decode_skip(d, SKIP_NESTING)
                if n < 8:
                    return decode_skip(d, SKIP_TRUNCATED)
                flags = be16(p + 2)
                kind = p[0]
                if flags & 0xFFF9:
                    answer = fragment_add(d, s, be32(p + 4), 0x10000, flags & 0xFFF8, flags & 1, p + 8, n - 8, missing, packet.ts_ns, &whole, &whole_len)
                    if answer == 0:
                        return 0
                    p = whole
                    n = whole_len
                    cut = 0
                    missing = 0
                    s.lasting = 0
                    kind = d.fragments.next_header
                else:
                    p += 8        # an atomic fragment (RFC 6946)
                    n -= 8
            elif kind == 4 or kind == 41:
                count_add(&d.layers[LAYER_IP_IN_IP], 1)
                at = AT_IP
            elif kind == 97:      # EtherIP
                count_add(&d.layers[LAYER_ETHERIP], 1)
                if n < 2:
                    return decode_skip(d, SKIP_TRUNCATED)
                p += 2
                n -= 2
                at = AT_ETHERNET
            elif kind == 137:
                at = AT_MPLS
            elif kind == 47:
                if n < 4:
                    return decode_skip(d, SKIP_TRUNCATED)
                flags = be16(p)
                kind = be16(p + 2)
                header = 4
                if flags & 7 == 0:
                    if flags & 0x4000:
                        return decode_skip(d, SKIP_GRE)
                    if flags & 0x8000:
                        header += 4
                    if flags & 0x2000:
                        header += 4
                    if flags & 0x1000:
                        header += 4
                elif flags & 7 == 1:
                    header += 4
                    if flags & 0x1000:
                        header += 4
                    if flags & 0x80:
                        header += 4
                else:
                    return decode_skip(d, SKIP_GRE)
                if n < header:
                    return decode_skip(d, SKIP_TRUNCATED)
                if flags & 0x2000 and flags & 7 == 0:
                    network = network * DECODE_MIX + be32(p + (8 if flags & 0x8000 else 4))
                count_add(&d.layers[LAYER_GRE], 1)
                p += header
                n -= header
                at = AT_TYPE
                if kind == 0x880B:
                    at = AT_PPP
                elif kind == 0x88BE:
                    header = 8 if flags & 0x1000 else 0       # ERSPAN II; I has no header of its own
                    if n < header:
                        return decode_skip(d, SKIP_TRUNCATED)
                    p += header
                    n -= header
                    kind = 0x6558
                elif kind == 0x22EB:
                    if n < 12:
                        return decode_skip(d, SKIP_TRUNCATED)
                    header = 20 if p[11] & 1 else 12
                    if n < header:
                        return decode_skip(d, SKIP_TRUNCATED)
                    p += header
                    n -= header
                    kind = 0x6558
                elif kind <= 1500:
                    return decode_skip(d, SKIP_GRE)
            elif kind == 17:
                if n < 8:
                    return decode_skip(d, SKIP_TRUNCATED)
                port = be16(p + 2)
                if not decode_is_tunnel(port):
                    port = be16(p)
                if not decode_is_tunnel(port):
                    count_add(&d.protocols[17], 1)
                    return 0
                p += 8
                n -= 8
                if port == 4789 or port == 8472 or port == 4790:
                    if n < 8 or not p[0] & 8:
                        count_add(&d.protocols[17], 1)
                        return 0
                    count_add(&d.layers[LAYER_VXLAN], 1)
                    i = p[3] if (port == 4790 or p[0] & 4) else 3
                    network = network * DECODE_MIX + (be32(p + 4) >> 8) + 0x1000000
                    p += 8
                    n -= 8
                    if i == 1 or i == 2:
                        at = AT_IP
                    elif i == 4:
                        kind = 0x894F
                        at = AT_TYPE
                    else:
                        depth += 1
                        if depth > DECODE_DEPTH:
                            return decode_skip(d, SKIP_NESTING)
                        at = AT_ETHERNET
                elif port == 6081:
                    header = 8 + (p[0] & 0x3F) * 4 if n else 8
                    if n < header or p[0] >> 6:
                        count_add(&d.protocols[17], 1)
                        return 0
                    network = network * DECODE_MIX + (be32(p + 4) >> 8) + 0x1000000
                    count_add(&d.layers[LAYER_GENEVE], 1)
                    kind = be16(p + 2)
                    p += header
                    n -= header
                    at = AT_TYPE
                elif port == 2152:
                    # GTP-U: a G-PDU with its optional fields and extension headers (3GPP TS 29.281 5)
                    if n < 8 or p[0] >> 4 != 3 or p[1] != 255:
                        count_add(&d.protocols[17], 1)
                        return 0
                    header = 8
                    if p[0] & 7:
                        if n < 12:
                            return decode_skip(d, SKIP_TRUNCATED)
                        header = 12
                        i = p[11] if p[0] & 4 else 0
                        while i:
                            tags += 1
                            if tags > DECODE_TAGS:
                                return decode_skip(d, SKIP_NESTING)
                            if n < header + 4 or p[header] == 0 or n - header < <uint32_t>p[header] * 4:
                                return decode_skip(d, SKIP_TRUNCATED)
                            i = p[header + <uint32_t>p[header] * 4 - 1]
                            header += <uint32_t>p[header] * 4
                    p += header
                    n -= header
                    if n == 0 or (p[0] >> 4 != 4 and p[0] >> 4 != 6):
                        count_add(&d.protocols[17], 1)
                        return 0
                    count_add(&d.layers[LAYER_GTP], 1)
                    at = AT_IP
                elif port == 1701:
                    # L2TP version 2 (RFC 2661 3.1): data, with PPP inside
                    if n < 6 or p[0] & 0x80 or (p[1] & 15) != 2:
                        count_add(&d.protocols[17], 1)
                        return 0
                    count_add(&d.layers[LAYER_L2TP], 1)
                    flags = p[0]
                    header = 6 + (2 if flags & 0x40 else 0) + (4 if flags & 8 else 0)
                    if flags & 2:
                        if n < header + 2:
                            return decode_skip(d, SKIP_TRUNCATED)
                        header += 2 + be16(p + header)
                    if n < header:
                        return decode_skip(d, SKIP_TRUNCATED)
                    p += header
                    n -= header
                    at = AT_PPP
                else:
                    # Teredo (RFC 4380 5.1.1): authentication, origin, then IPv6
                    if n >= 4 and p[0] == 0 and p[1] == 1:
                        header = 13 + <uint32_t>p[2] + p[3]
                        if n < header:
                            return decode_skip(d, SKIP_TRUNCATED)
                        p += header
                        n -= header
                    if n >= 8 and p[0] == 0 and p[1] == 0:
                        p += 8
                        n -= 8
                    if n < 40 or p[0] >> 4 != 6:
                        count_add(&d.protocols[17], 1)
                        return 0
                    count_add(&d.layers[LAYER_TEREDO], 1)
                    at = AT_IP
            else:
                count_add(&d.protocols[kind & 255], 1)
                return 0


cdef inline bint decode_is_type(uint32_t kind) noexcept nogil:
    return kind == 0x0800 or kind == 0x86DD or kind == 0x8100 or kind == 0x88A8 or kind == 0x8847 or kind == 0x0806 or kind == 0x8864


cdef inline bint decode_is_tunnel(uint32_t port) noexcept nogil:
    return port == 4789 or port == 8472 or port == 4790 or port == 6081 or port == 3544 or port == 2152 or port == 1701


cdef class DecoderForTests:
    """`decode` for tests: one packet at a time, copied into memory of exactly its size so that a sanitizer sees every read beyond it."""
    cdef Decoder decoder

    def __init__(self, bint split_by_network=False):
        if decoder_init(&self.decoder) < 0:
            raise MemoryError
        self.decoder.split_by_network = split_by_network

    def __dealloc__(self):
        decoder_free(&self.decoder)

    def decode(self, bytes data not None, uint32_t link=1, wirelen=None, int64_t ts_ns=0):
        cdef Packet p
        cdef Segment s
        cdef uint8_t* copy = <uint8_t*>malloc(len(data) or 1)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, <const uint8_t*>data, len(data))
        memset(&p, 0, sizeof(p))
        memset(&s, 0, sizeof(s))
        p.data = copy
        p.caplen = len(data)
        p.wirelen = len(data) if wirelen is None else wirelen
        p.link = link
        p.ts_ns = ts_ns
        try:
            if not decode(&self.decoder, &p, &s):
                return None
            return {"src": <bytes>s.src[:16], "dst": <bytes>s.dst[:16], "sport": s.sport, "dport": s.dport, "seq": s.seq, "ack": s.ack,
                    "flags": s.flags, "data": <bytes>s.data[:s.len], "missing": s.missing, "network": s.network, "ts_ns": s.ts_ns}
        finally:
            free(copy)

    def skipped(self):
        return decoder_skipped(&self.decoder)

    @property
    def cut_frames(self):
        return self.decoder.cut_frames

    @property
    def fragment_bytes(self):
        return self.decoder.fragments.bytes
