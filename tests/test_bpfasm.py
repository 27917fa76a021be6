"""Filters of our own making: what passes by the interpreter beside them, by the kernel itself, and that the kernel takes them."""

import contextlib
import ipaddress
import socket
import struct

import packetmake as net
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tapmake import needs_root

from replay import _fastpath
from replay._reference import sampling
from replay.capture import bpfasm
from replay.capture.afpacket import Tapped
from replay.capture.bpfasm import Rules, build, run
from replay.settings import network

A, B, C = (b"\x0a\0\0\x01", 40000), (b"\x0a\0\0\x02", 80), (b"\x0a\x01\0\x03", 8080)
V4 = bytes(10) + b"\xff\xff"
A6, B6 = (bytes.fromhex("20010db8" + "00" * 11 + "01"), 40000), (bytes.fromhex("20010db8" + "00" * 11 + "02"), 80)


def packet(source, target, flags=net.ACK, payload=b"x", options=b""):
    return net.ip(source[0], target[0], 6, net.tcp(source, target, 1, 1, flags, payload, options))


def vxlan(inner, port=4789, tag=b"", ends=(b"\xac\x10\0\x01", b"\xac\x10\0\x02")):
    udp = struct.pack(">HHHH", 50000, port, 16 + 14 + len(inner), 0) + b"\x08\0\0\0\0\0\x07\0" + net.MACS + tag + net.ethertype(inner) + inner
    return net.ip(*ends, 17, udp)


def nets(*texts):
    return [network(text) for text in texts]




CASES = [  # rules, source, target, passes, reason
    (Rules(), A, B, True, "no rule: all TCP"),
    (Rules(ports=[80]), A, B, True, "to the port"),
    (Rules(ports=[80]), B, A, True, "from the port"),
    (Rules(ports=[81]), A, B, False, "another port"),
    (Rules(not_served=(nets("10.0.0.2", "2001:db8::2"), 80)), A, B, False, "to our own server"),
    (Rules(not_served=(nets("10.0.0.2", "2001:db8::2"), 80)), B, A, False, "from our own server"),
    (Rules(not_served=(nets("10.0.0.2", "2001:db8::2"), 80)), A6, B6, False, "to our own server by IPv6"),
    (Rules(not_served=(nets("10.0.0.2", "2001:db8::2"), 80)), B6, A6, False, "from our own server by IPv6"),
    (Rules(not_served=(nets("10.0.0.2"), 80)), A6, B6, True, "our own server is of the other family"),
    (Rules(not_served=(nets("10.0.0.2"), 81)), A, B, True, "our own server has another port"),
    (Rules(not_served=(nets("10.0.0.1"), 80)), A, B, True, "our own server has another address"),
    (Rules(servers=nets("10.0.0.2"), not_served=(nets("10.0.0.1"), 80)), A, B, True, "what comes behind our own server finds its header"),
    (Rules(ports=[81, 80, 443]), A, B, True, "one of several ports"),
    (Rules(ports=[40000]), A, B, True, "either side may be the server"),
    (Rules(servers=nets("10.0.0.2")), A, B, True, "to the server"),
    (Rules(servers=nets("10.0.0.2")), B, A, True, "from the server"),
    (Rules(servers=nets("10.0.0.3")), A, B, False, "another server"),
    (Rules(servers=nets("10.0.0.0/8")), A, B, True, "a network"),
    (Rules(servers=nets("10.1.0.0/16")), A, C, True, "within a network"),
    (Rules(servers=nets("10.1.0.0/16")), A, B, False, "outside of a network"),
    (Rules(servers=nets("0.0.0.0/0")), A, B, True, "any IPv4"),
    (Rules(servers=nets("::/0")), A, B, True, "any address at all"),
    (Rules(servers=nets("2001:db8::2")), A, B, False, "a server of the other family"),
    (Rules(servers=nets("2001:db8::2")), A6, B6, True, "an IPv6 server"),
    (Rules(servers=nets("2001:db8::/33")), A6, B6, True, "an IPv6 network that ends within a word"),
    (Rules(servers=nets("2001:db8:8000::/33")), A6, B6, False, "outside of it"),
    (Rules(servers=nets("10.0.0.2")), A6, B6, False, "IPv6 for an IPv4 server"),
    (Rules(ports=[80]), A6, B6, True, "a port over IPv6"),
    (Rules(ports=[80], servers=nets("10.0.0.1")), A, B, False, "port and server must be one end's"),
    (Rules(clients=nets("10.0.0.1"), ports=[80]), A, B, True, "from the client"),
    (Rules(clients=nets("10.0.0.1"), ports=[80]), B, A, True, "the reply to the client"),
    (Rules(clients=nets("10.0.0.9"), ports=[80]), A, B, False, "another client"),
    (Rules(not_clients=nets("10.0.0.1"), ports=[80]), A, B, False, "a client that is left out"),
    (Rules(not_clients=nets("10.0.0.1"), ports=[80]), B, A, False, "the reply to it"),
    (Rules(not_clients=nets("10.0.0.2"), ports=[80]), A, B, True, "left out as a client, not as a server"),
    (Rules(local=nets("10.0.0.2"), ports=[80]), A, B, True, "to a server of this node"),
    (Rules(local=nets("10.0.0.2"), ports=[80]), B, A, True, "from a server of this node"),
    (Rules(local=nets("10.0.0.1"), ports=[80]), A, B, False, "a call of this node"),
    (Rules(local=nets("10.0.0.1"), ports=[80], elsewhere=True), A, B, True, "a call of this node, which is wanted"),
    (Rules(local=nets("10.0.0.2"), ports=[80], elsewhere=True), A, B, False, "a call to this node, where others are wanted"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 40100)), A, B, False, "our own connection"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 40100)), B, A, False, "a reply on it"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40001, 40100)), A, B, True, "below our ports"),
    (Rules(own=nets("10.0.0.1"), own_ports=(30000, 39999)), A, B, True, "above our ports"),
    (Rules(own=nets("10.0.0.7"), own_ports=(40000, 40100)), A, B, True, "our port, somebody else's address"),
    (Rules(own=nets("2001:db8::1"), own_ports=(40000, 40100)), A6, B6, False, "our own connection over IPv6"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 65535), own_to=[(V4 + B[0], 80)]), A, B, False, "our own connection to the target"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 65535), own_to=[(V4 + C[0], 8080), (V4 + B[0], 80)]), B, A, False, "a reply on it"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 65535), own_to=[(V4 + B[0], 81)]), A, B, True, "our port, to another port of the target"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 65535), own_to=[(V4 + C[0], 80)]), A, B, True, "our port, to another address"),
    (Rules(own=nets("10.0.0.1"), own_ports=(40000, 65535), own_to=[(V4 + C[0], 80)]), B, A, True, "a service on one of our ports"),
    (Rules(own=nets("2001:db8::1"), own_ports=(40000, 65535), own_to=[(V4 + B[0], 80), (B6[0], 80)]), A6, B6, False, "our own connection to the target over IPv6"),
    (Rules(own=nets("2001:db8::1"), own_ports=(40000, 65535), own_to=[(A6[0], 80)]), A6, B6, True, "to another address over IPv6"),
]

WRAPPED = [
    (net.ethernet, "bare"),
    (net.vlan, "VLAN"),
    (lambda p: net.MACS + b"\x88\xa8\0\1\x81\0\0\2" + net.ethertype(p) + p, "QinQ"),
    (lambda p: net.ethernet(vxlan(p)), "VXLAN"),
    (lambda p: net.vlan(vxlan(p, 8472)), "VXLAN at flannel's port in a VLAN"),
    (lambda p: net.ethernet(vxlan(p, tag=b"\x81\0\0\3")), "VLAN in VXLAN"),
    (lambda p: net.ethernet(vxlan(p, ends=(A6[0], B6[0]))), "VXLAN over IPv6"),
]


@pytest.mark.parametrize(("wrap", "how"), WRAPPED, ids=[how for _, how in WRAPPED])
@pytest.mark.parametrize(("rules", "source", "target", "passes", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_what_passes(rules, source, target, passes, reason, wrap, how):
    assert bool(run(build(rules), wrap(packet(source, target)))) == passes


@pytest.mark.parametrize(("rules", "source", "target", "passes", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_what_passes_without_a_link_layer(rules, source, target, passes, reason):
    rules = Rules(**{name: getattr(rules, name) for name in Rules.__slots__} | {"ethernet": False})
    assert bool(run(build(rules), packet(source, target))) == passes


def test_surroundings():
    frame = net.ethernet(packet(A, B))
    marked = build(Rules(mark=0x53484457))
    assert run(marked, frame) and not run(marked, frame, mark=0x53484457)
    assert not run(build(Rules()), frame, hatype=772, pkttype=4) and run(build(Rules()), frame, hatype=772)
    some = build(Rules(interfaces=[3, 5]))
    assert [bool(run(some, frame, ifindex=n)) for n in range(1, 7)] == [False, False, True, False, True, False]
    assert not run(build(Rules(interfaces=[])), frame)


def test_interfaces_with_and_without_a_link_layer():
    """What a packet begins with is its interface's affair where both kinds are heard; so is which expression decides about it."""
    bare, ether = packet(A, B), net.ethernet(packet(A, B))
    program = build(Rules(ports=[80], ethernet=None))
    for hatype in (0xFFFE, 512, 768):  # tun, WireGuard; PPP; IPIP
        assert run(program, bare, hatype=hatype) and not run(program, ether, hatype=hatype)
        assert not run(program, packet(A, C), hatype=hatype) and run(program, packet(A6, B6), hatype=hatype)
    for hatype in (1, 772):
        assert run(program, ether, hatype=hatype) and not run(program, bare, hatype=hatype)
    then = build(Rules(ports=[80], ethernet=None), [(0x06, 0, 0, 1)] * 300, [(0x06, 0, 0, 2)])
    assert [run(then, ether), run(then, ether, hatype=772), run(then, bare, hatype=512), run(then, packet(A, C), hatype=512)] == [1, 1, 2, 0]


def test_a_server_behind_a_veth():
    """Towards a container requests go out of its veth; what a container asks comes in there."""
    rules = build(Rules(local=nets("192.0.2.1"), inside=[7], ports=[80]))
    there, back = net.ethernet(packet(A, B)), net.ethernet(packet(B, A))
    assert run(rules, there, ifindex=7, pkttype=4) and run(rules, back, ifindex=7, pkttype=0)
    assert not run(rules, there, ifindex=7, pkttype=0) and not run(rules, back, ifindex=7, pkttype=4)
    assert not run(rules, there, ifindex=8, pkttype=4)
    others = build(Rules(local=nets("192.0.2.1"), inside=[7], ports=[80], elsewhere=True))
    assert not run(others, there, ifindex=7, pkttype=4) and run(others, there, ifindex=7, pkttype=0)


def test_what_is_no_tcp():
    for frame in (net.MACS + b"\x08\x06" + bytes(28), net.ethernet(net.ip(A[0], B[0], 17, bytes(20))), net.ethernet(net.ip(A6[0], B6[0], 17, bytes(20))), b"", bytes(13)):
        assert not run(build(Rules(vxlan_ports=())), frame) and not run(build(Rules(ports=[80])), frame)


def test_what_headers_do_not_tell_passes():
    whole = bytearray(packet(A, B))
    whole[6:8] = b"\x00\x10"  # a later fragment
    assert run(build(Rules(ports=[443])), net.ethernet(bytes(whole))) and not run(build(Rules(servers=nets("10.9.0.0/16"))), net.ethernet(bytes(whole)))
    six = bytearray(packet(A6, B6))
    six[6] = 44
    assert run(build(Rules(ports=[443])), net.ethernet(bytes(six)))


def test_first_packets_only():
    rules = build(Rules(ports=[80], connects=True))
    assert run(rules, net.ethernet(packet(A, B, net.SYN, b"")))
    assert not run(rules, net.ethernet(packet(A, B, net.SYN | net.ACK, b""))) and not run(rules, net.ethernet(packet(A, B)))


def test_many_networks_jump_far():
    """Conditional jumps reach 255 instructions; behind that they go over a longer one."""
    many = nets(*(f"10.{n // 256}.{n % 256}.7" for n in range(600)))
    program = build(Rules(servers=many, ports=[80]))
    assert len(program) <= 4096
    for n in (0, 1, 299, 598, 599):
        assert run(program, net.ethernet(packet(A, (bytes([10, n // 256, n % 256, 7]), 80))))
    assert not run(program, net.ethernet(packet(A, (b"\x0a\x09\0\x07", 80))))
    with pytest.raises(ValueError, match="kernel takes"):
        build(Rules(servers=nets(*(f"10.{n // 256}.{n % 256}.7" for n in range(4000)))))


WIDE = st.one_of(
    st.tuples(st.sampled_from([7, 0x0A000000, 0x0A0001FE]), st.integers(0, 600), st.integers(24, 32)).map(lambda t: (V4 + (t[0] + t[1]).to_bytes(4, "big"), 96 + t[2])),
    st.tuples(st.sampled_from(["fd00:100::", "fd00:100::ffff:ff00", "fd00:100:0:1::", "fe80::", "::"]), st.integers(0, 600), st.integers(100, 128)).map(
        lambda t: ((int(ipaddress.IPv6Address(t[0])) + t[1]).to_bytes(16, "big"), t[2])
    ),
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)),
)


def has(networks, address):
    return any(int.from_bytes(address, "big") >> 128 - bits == int.from_bytes(one, "big") >> 128 - bits for one, bits in networks)


@settings(max_examples=300, deadline=None)
@given(st.lists(WIDE, min_size=1, max_size=150), st.integers(1, 20), st.data())
def test_many_networks_are_searched(networks, most, data):
    program = build(Rules(servers=networks, ports=[80]))
    wider = bpfasm.widened(networks, most)
    assert len(bpfasm._ranges(wider, 4)) <= most and len(bpfasm._ranges(wider, 6)) <= most
    for _ in range(20):
        one, bits = data.draw(st.sampled_from(networks))
        near = (int.from_bytes(one, "big") + data.draw(st.sampled_from([-1, 0, 1, 1 << (128 - bits)]))) % 2**128
        address = near.to_bytes(16, "big")
        plain = address[12:] if address.startswith(V4) else address
        client = A if len(plain) == 4 else A6
        assert bool(run(program, net.ethernet(packet(client, (plain, 80))))) == has(networks, address), address.hex()
        assert has(wider, address) or not has(networks, address)


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(1, 200), max_size=150), st.sets(st.integers(1, 200)))
def test_many_interfaces_are_searched(wanted, others):
    """Each interface that there is is told; of a number that none has it does not matter."""
    program = build(Rules(interfaces=sorted(wanted), known=sorted(wanted | others)))
    for number in wanted | others:
        assert bool(run(program, net.ethernet(packet(A, B)), ifindex=number)) == (number in wanted)


@pytest.mark.parametrize("replies", [None, 512])
def test_a_thousand_pods_fit(replies):
    pods = [f"10.100.{i // 250}.{i % 250 + 1}" for i in range(1000)] + [f"fd00:100::{i * 7 + 1:x}" for i in range(1000)]
    inside = [5 + 2 * i for i in range(1000)]
    rules = Rules(ports=[8080], local=nets("127.0.0.0/8", "::1", *pods), inside=inside, known=[1, 2, *inside], replies=replies)
    program = build(rules)
    assert len(program) < 3200
    pod = bytes([10, 100, 3, 250]), 8080
    assert run(program, net.ethernet(packet(A, pod))) and not run(program, net.ethernet(packet(A, (bytes([10, 100, 3, 251]), 8080))))
    assert run(program, net.ethernet(packet(A, C)), ifindex=1003, pkttype=4) and not run(program, net.ethernet(packet(A, C)), ifindex=2, pkttype=4)


def test_an_expression_decides_about_the_rest():
    then = [(0x30, 0, 0, 22), (0x15, 0, 1, 64), (0x06, 0, 0, 100), (0x06, 0, 0, 0)]  # time to live is 64
    program = build(Rules(ports=[80]), then)
    assert run(program, net.ethernet(packet(A, B))) == 100
    other = bytearray(packet(A, B))
    other[8] = 63
    assert run(program, net.ethernet(bytes(other))) == 0 and run(program, net.ethernet(packet(A, C))) == 0


ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.1.0.3", "172.16.0.1"])
NETWORKS = st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1", "10.0.0.2/31", "172.16.0.0/12", "0.0.0.0/0", "10.1.0.3", "2001:db8::/32"])
PORTS = st.sampled_from([80, 443, 8080, 40000, 61000, 65535])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PORTS, max_size=3), st.lists(NETWORKS, max_size=3), st.lists(NETWORKS, max_size=2), st.lists(NETWORKS, max_size=2),
    st.none() | st.lists(NETWORKS, max_size=2), st.booleans(), ADDRESSES, ADDRESSES, PORTS, PORTS, st.sampled_from(WRAPPED),
)  # fmt: skip
def test_like_plain_python(ports, servers, clients, left_out, local, elsewhere, source, target, sport, dport, wrapped):
    rules = Rules(ports=ports, servers=nets(*servers), clients=nets(*clients), not_clients=nets(*left_out),
                  local=None if local is None else nets(*local), elsewhere=elsewhere)  # fmt: skip

    def within(address, texts):
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(text, strict=False) for text in texts)

    def taken(server, port, client):
        return (
            (not ports or port in ports) and (not servers or within(server, servers)) and (not clients or within(client, clients))
            and not within(client, left_out) and (local is None or within(server, local) != elsewhere)
        )  # fmt: skip

    frame = wrapped[0](packet((ipaddress.ip_address(source).packed, sport), (ipaddress.ip_address(target).packed, dport)))
    assert bool(run(build(rules), frame)) == (taken(target, dport, source) or taken(source, sport, target))


# ---- a share of the connections, in the kernel ----------------------------------------------------------------------------------


def bound(share):
    """What `Rules.sample` wants of a share in parts per million."""
    return -(-((share << 64) // 1_000_000) >> 32)


def key(source, target):
    return b"".join((bytes(10) + b"\xff\xff" + address)[-16:] + port.to_bytes(2, "big") for address, port in (source, target))





@settings(max_examples=400, deadline=None)
@given(st.sampled_from([4, 16]).flatmap(lambda n: st.tuples(*[st.tuples(st.binary(min_size=n, max_size=n), st.integers(0, 65535))] * 2)),
       st.integers(0, 999_999), st.integers(0, 2**64 - 1), st.sampled_from(WRAPPED), st.booleans())  # fmt: skip
def test_the_sample_is_that_of_the_engine_and_of_the_oracle(ends, share, seed, wrapped, shortened):
    source, target = ends
    program = build(Rules(sample=(bound(share), seed), replies=512 if shortened else 0, vxlan_ports=(4789, 8472)))
    expected = sampling.kernel_hash(key(source, target), seed)
    assert _fastpath.kernel_sample_hash(key(source, target), seed) == expected == sampling.kernel_hash(key(target, source), seed)
    taken = sampling.is_taken(key(source, target), share, seed, "connection:kernel")
    assert taken == (expected < bound(share))
    wrap = wrapped[0]
    assert bool(run(program, wrap(packet(source, target)))) == bool(run(program, wrap(packet(target, source)))) == taken


def test_the_sample_is_even_and_nests():
    ends = [((bytes([10, 0, n >> 8, n & 255]), port), (b"\x0a\x09\x09\x09", 8080)) for n in range(300) for port in range(40000, 40010)]
    before = set()
    for share in (10_000, 50_000, 250_000, 500_000, 900_000):
        program = build(Rules(ports=[8080], sample=(bound(share), 0)))
        taken = {n for n, (client, server) in enumerate(ends) if run(program, net.ethernet(packet(client, server)))}
        assert before <= taken and abs(len(taken) / len(ends) - share / 1e6) < 4 * (share / 1e6 * (1 - share / 1e6) / len(ends)) ** 0.5
        before = taken


def test_what_headers_do_not_tell_is_never_sampled_out():
    whole = bytearray(packet(A, B))
    whole[6:8] = b"\x00\x10"
    assert run(build(Rules(ports=[80], sample=(0, 0), replies=512)), net.ethernet(bytes(whole))) == bpfasm.ACCEPT
    six = bytearray(packet(A6, B6))
    six[6] = 44
    assert run(build(Rules(ports=[80], sample=(0, 0), replies=512)), net.ethernet(bytes(six))) == bpfasm.ACCEPT


# ---- replies that stay in the kernel ---------------------------------------------------------------------------------------------

REPLIES = [  # payload, bytes of it that are kept (None: whatever there is), reason
    (b"", None, "an acknowledgement"),
    (b"HTT", None, "too short to tell"),
    (b"HTTP/1.1 200 OK\r\n\r\n", 512, "a short reply"),
    (b"HTTP/1.1 200 OK\r\n" + b"x" * 3000, 512, "the beginning of a reply"),
    (b"x" * 3000, 0, "the middle of one"),
    (b"GET / HTTP/1.1\r\n\r\n", 0, "no reply"),
]


@pytest.mark.parametrize(("payload", "kept", "reason"), REPLIES, ids=[case[-1] for case in REPLIES])
@pytest.mark.parametrize(("wrap", "how"), WRAPPED, ids=[how for _, how in WRAPPED])
@pytest.mark.parametrize(("client", "server"), [(A, B), (A6, B6)], ids=["IPv4", "IPv6"])
def test_replies_are_shortened(payload, kept, reason, wrap, how, client, server):
    program = build(Rules(ports=[80], replies=512))
    bare = len(wrap(packet(server, client, payload=b"")))
    assert run(program, wrap(packet(server, client, payload=payload))) == (bpfasm.ACCEPT if kept is None else bare + kept)
    assert run(program, wrap(packet(client, server, payload=payload))) == bpfasm.ACCEPT, "requests are not"
    if len(client[0]) == 4 and kept is not None:
        options = wrap(net.ip(server[0], client[0], 6, net.tcp(server, client, 1, 1, net.ACK, payload, b"\1" * 12)))
        assert run(program, options) == bare + 12 + kept


def test_fragments_of_replies_are_whole():
    first = bytearray(packet(B, A, payload=b"x" * 1000))
    first[6:8] = b"\x20\x00"  # more fragments follow
    assert run(build(Rules(ports=[80], replies=512)), net.ethernet(bytes(first))) == bpfasm.ACCEPT


@needs_root
def test_a_first_fragment_is_no_bare_acknowledgement():
    first = bytearray(packet(A, B, payload=b"", options=b"\1" * 20)[:-16])  # it ends within the options
    first[6:8] = b"\x20\x00"
    assert run(build(Rules(ports=[80], replies=None)), net.ethernet(bytes(first)))


@pytest.mark.parametrize("rules", [case[0] for case in CASES] + [Rules(ports=[80], sample=(77, 1), replies=512), Rules(sample=(2**32 - 1, 2**64 - 1))] + [Rules(servers=nets(*(f"10.{n // 256}.{n % 256}.7" for n in range(600))))])
def test_the_kernel_takes_it(rules):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
        Tapped(tap, 0, True, 0, 0).attach(build(rules))


@pytest.mark.alone  # nothing else may fill its sockets
@needs_root
def test_the_kernel_runs_it_alike():
    """Frames through a pair of packet sockets on lo: what arrives is what the interpreter says."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        out.bind(("lo", 0))
        tap = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        tapped = Tapped(tap, 0, True, 0, 0)
        tapped.attach([(0x06, 0, 0, 0)])
        tap.bind(("lo", 3))
        tap.settimeout(10)
        last = net.ethernet(net.ip(b"\x0b\x0b\x0b\x0b", b"\x0c\x0c\x0c\x0c", 6, net.tcp((b"", 7), (b"", 9), 1, 1, net.ACK, b"the end")))
        ending = build(Rules(servers=nets("12.12.12.12")))
        for rules, source, target, passes, _ in CASES:
            for wrap, how in WRAPPED:
                frame = wrap(packet(source, target, payload=b"unique to the test of filters"))
                program = build(rules)
                tapped.attach(program)
                out.send(frame)
                tapped.attach(ending)
                out.send(last)
                got = []
                while not got or b"the end" not in got[-1]:
                    got.append(tap.recv(2000))
                came = [one for one in got if b"unique to the test of filters" in one]
                if "VLAN" in how or how == "QinQ":
                    continue  # lo takes an outer tag off, the frame is another one
                assert bool(came) == passes, (rules, how)


def test_the_interpreter_knows_its_instructions():
    with pytest.raises(ValueError, match="not known"):
        run([(0xFF, 0, 0, 0)], b"")
    assert bpfasm.ACCEPT > 65549


@pytest.mark.parametrize(("wrap", "how"), WRAPPED, ids=[how for _, how in WRAPPED])
@pytest.mark.parametrize(("client", "server"), [(A, B), (A6, B6)], ids=["IPv4", "IPv6"])
def test_without_replies_nothing_passes_that_only_acknowledges(wrap, how, client, server):
    program = build(Rules(ports=[80], replies=None))
    for flags in (net.ACK, net.ACK | net.PSH, net.SYN, net.FIN | net.ACK, net.RST):
        for options in (b"", b"\1" * 12):
            for payload in (b"", b"x", b"x" * 3000):
                passes = bool(payload) or flags not in (net.ACK, net.ACK | net.PSH)
                assert bool(run(program, wrap(packet(client, server, flags, payload, options)))) == passes, (flags, options, payload)
                assert not run(program, wrap(packet(server, client, flags, payload, options)))
