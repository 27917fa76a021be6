/* The machine's own limit, to compare with: adds up a mapped file, 64 bytes a step, and prints the sum. Nothing can be read from a mapped file for less.
 *
 *     cc -O2 -o sum sum.c && ./sum FILE
 *
 * AVX2 where the processor has it, else what the compiler makes of the plain loop. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *at, size_t length)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    size_t i = 0;
    for (; i + 128 <= length; i += 128) {
        a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i *)(at + i)));
        b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i *)(at + i + 32)));
        c = _mm256_add_epi64(c, _mm256_loadu_si256((const __m256i *)(at + i + 64)));
        d = _mm256_add_epi64(d, _mm256_loadu_si256((const __m256i *)(at + i + 96)));
    }
    uint64_t part[4], total;
    _mm256_storeu_si256((__m256i *)part, _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
    total = part[0] + part[1] + part[2] + part[3];
    for (; i < length; i++)
        total += at[i];
    return total;
}
#endif

static uint64_t sum_plain(const uint8_t *at, size_t length)
{
    uint64_t total = 0, word;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, at + i, 8);
        total += word;
    }
    for (; i < length; i++)
        total += at[i];
    return total;
}

int main(int argc, char **argv)
{
    struct stat about;
    int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &about) < 0 || about.st_size == 0)
        return fprintf(stderr, "usage: sum FILE (not empty)\n"), 2;
    const uint8_t *at = mmap(NULL, about.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED)
        return perror("mmap"), 1;
#if defined(__x86_64__)
    uint64_t total = __builtin_cpu_supports("avx2") ? sum_avx2(at, about.st_size) : sum_plain(at, about.st_size);
#else
    uint64_t total = sum_plain(at, about.st_size);
#endif
    printf("%llu\n", (unsigned long long)total);
    return 0;
}
