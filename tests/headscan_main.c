/* What head_scan() says of heads, on a machine that need not be this one (tests/test_head_variants.py): headscan_main VARIANT <cases >answers.
 *
 * A case is its length (four bytes, little-endian) and its bytes; they are looked at where the page ends right behind them, and the next page must not be touched. */
#include "../replay/fastpath/headfast.h"
#include <stdio.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
    const size_t room = 1 << 16;
    uint8_t *pages = mmap(NULL, room + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HeadScan scan = argc == 2 ? head_scan_variant(argv[1]) : NULL;
    uint8_t length[4];
    if (scan == NULL || pages == MAP_FAILED || mprotect(pages + room, 65536, PROT_NONE) != 0)
        return fprintf(stderr, "usage: headscan_main VARIANT\n"), 2;
    while (fread(length, 1, 4, stdin) == 4) {
        const size_t n = length[0] | length[1] << 8 | (size_t)length[2] << 16;
        uint8_t *p = pages + room - n;
        Head h;
        size_t end;
        uint32_t i;
        memset(&h, 0, sizeof h);
        if (n > room || fread(p, 1, n, stdin) != n)
            return 3;
        end = scan(p, n, &h);
        printf("%zu", end);
        if (end == HEAD_BEGUN)
            printf(" %u", h.method_len != 0);
        else if (end) {
            printf(" %u %u %u %u %u %u %u %u %u %u %u %u %lld", h.length, h.line_len, h.method_len, h.target_at, h.target_len, h.lines, h.hosts, h.flags, h.status, h.version, h.framing, h.drops,
                   (long long)h.content_length);
            if (h.hosts)
                printf(" host %u %u", h.host_at, h.host_len);
            if (h.host_plain)
                printf(" split %u", h.host_split);
            for (i = 0; i < h.drops && i < HEAD_DROPS; i++)
                printf(" drop %u %u", h.drop_at[i], h.drop_end[i]);
        }
        printf("\n");
    }
    return 0;
}
