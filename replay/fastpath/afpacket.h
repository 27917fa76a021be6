/* The TPACKET_V3 ring that the kernel shares with us: who owns a block, and what stands before each packet. */
#ifndef REPLAY_AFPACKET_H
#define REPLAY_AFPACKET_H
#include <linux/if_packet.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

/* A block is ours from when its status says so (acquire: what it holds is read after that) until we give it back (release). */
static inline int afp_block_ready(const uint8_t *block) {
    const struct tpacket_block_desc *d = (const struct tpacket_block_desc *)block;
    return (__atomic_load_n(&d->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER) != 0;
}
static inline int afp_block_losing(const uint8_t *block) {
    return (((const struct tpacket_block_desc *)block)->hdr.bh1.block_status & TP_STATUS_LOSING) != 0;
}
static inline void afp_block_release(uint8_t *block) {
    __atomic_store_n(&((struct tpacket_block_desc *)block)->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
}
static inline uint32_t afp_block_packets(const uint8_t *block) { return ((const struct tpacket_block_desc *)block)->hdr.bh1.num_pkts; }
static inline const uint8_t *afp_block_first(const uint8_t *block) {
    return block + ((const struct tpacket_block_desc *)block)->hdr.bh1.offset_to_first_pkt;
}

typedef struct {
    int64_t ts_ns;
    const uint8_t *data;
    uint32_t caplen;
    uint32_t wirelen;
    uint32_t iface;
    uint32_t vlan;      /* tag that the kernel took off (12 bits) + 1; 0: none */
    uint16_t hatype;    /* ARPHRD_ */
    uint16_t protocol;  /* EtherType, host order */
    uint32_t net;       /* offset of the network header from data; may be beyond caplen */
    uint8_t pkttype;    /* PACKET_HOST … PACKET_OUTGOING */
} AfpPacket;

/* Reads the packet at p and gives where the next one is (NULL behind the last one). */
static inline const uint8_t *afp_packet(const uint8_t *p, AfpPacket *out) {
    const struct tpacket3_hdr *h = (const struct tpacket3_hdr *)p;
    const struct sockaddr_ll *from = (const struct sockaddr_ll *)(p + TPACKET_ALIGN(sizeof(struct tpacket3_hdr)));
    out->ts_ns = (int64_t)h->tp_sec * 1000000000 + h->tp_nsec;
    out->data = p + h->tp_mac;
    out->caplen = h->tp_snaplen;
    out->wirelen = h->tp_len;
    out->iface = (uint32_t)from->sll_ifindex;
    out->vlan = (h->tp_status & TP_STATUS_VLAN_VALID) ? (h->hv1.tp_vlan_tci & 0xFFF) + 1 : 0;
    out->hatype = from->sll_hatype;
    out->protocol = __builtin_bswap16(from->sll_protocol);
    out->net = h->tp_net - h->tp_mac;
    out->pkttype = from->sll_pkttype;
    return h->tp_next_offset ? p + h->tp_next_offset : NULL;
}

/* A ring is larger than any cache, and the kernel has written it on another core: what will be read a few packets from now is asked for, line by line.
 * Packets follow each other without a gap, so no packet has to be looked at for that; beyond the block's end is the next block, or nothing that matters. */
static inline void afp_ask(const uint8_t *from, const uint8_t *to) {
    for (from = (const uint8_t *)((uintptr_t)from & ~(uintptr_t)63); from < to; from += 64)
        __builtin_prefetch(from, 0, 2);
}
#endif
