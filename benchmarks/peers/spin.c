/* What a pacer is measured against: spins until each request is due and sends it, nothing else. Answers are read away just before a connection is used again.
 *
 *     cc -O2 -o spin spin.c && ./spin PORT REQUESTS_A_SECOND SECONDS CONNECTIONS HEAD_BYTES
 *
 * Request n is due n / rate after the start and has n, in eight digits, in its target. It uses all of a core. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return fprintf(stderr, "usage: spin PORT RATE SECONDS CONNECTIONS HEAD_BYTES\n"), 2;
    long rate = atol(argv[2]), seconds = atol(argv[3]), connections = atol(argv[4]), length = atol(argv[5]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char head[4096], away[65536];
    int one = 1, line[1024];
    if (rate < 1 || seconds < 1 || connections < 1 || connections > 1024 || length < 128 || length > 4000)
        return fprintf(stderr, "spin: out of range\n"), 2;

    int before = sprintf(head, "GET /api/v2/customers/"), at = before + 8;
    at += sprintf(head + at, "/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: ");
    memset(head + at, 'c', length - at - 4);
    memcpy(head + length - 4, "\r\n\r\n", 4);

    for (long i = 0; i < connections; i++) {
        line[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (line[i] < 0 || connect(line[i], (struct sockaddr *)&to, sizeof to) < 0)
            return perror("spin: connect"), 1;
        setsockopt(line[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    int64_t start = now() + 100000000;
    for (long n = 0; n < rate * seconds; n++) {
        char digits[9];
        snprintf(digits, sizeof digits, "%08ld", n);
        memcpy(head + before, digits, 8);
        int to_use = line[n % connections];
        while (recv(to_use, away, sizeof away, MSG_DONTWAIT) > 0)
            ;
        int64_t due = start + (int64_t)((__int128)n * 1000000000 / rate);
        while (now() < due)
            ;
        if (send(to_use, head, length, 0) != length)
            return perror("spin: send"), 1;
    }
    struct timespec last = {.tv_nsec = 100000000};
    nanosleep(&last, NULL);
    return 0;
}
