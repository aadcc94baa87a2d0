// Read a file in one of the benchmark's ways and print how long it took, so that no interpreter is measured.
//
//   read_file PATH sequential|random BLOCK_BYTES BLOCKS THREADS SEED
//
// Sequential: each thread reads its share of the file from end to end (BLOCKS is not used). Random: BLOCKS
// blocks altogether at aligned offsets, each thread its share. Prints "seconds bytes".

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 64 };

static const char *path;
static int is_random, threads;
static size_t block;
static long long blocks, file_bytes;
static uint64_t seed;

struct share {
    int number;
    long long bytes;
};

static uint64_t next(uint64_t *state) {
    uint64_t value = (*state += 0x9e3779b97f4a7c15ULL);  // splitmix64
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
    return value ^ (value >> 31);
}

static long long read_at(int file, char *into, long long offset) {
    ssize_t got = pread(file, into, block, offset);
    if (got < 0) {
        perror("read_file");
        exit(1);
    }
    return got;
}

static void *work(void *argument) {
    struct share *share = argument;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    char *into = aligned_alloc(4096, (block + 4095) / 4096 * 4096);
    if (file < 0 || !into) {
        perror("read_file");
        exit(1);
    }
    if (is_random) {
        uint64_t state = seed * 1000003 + (uint64_t)share->number;
        posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
        for (long long left = blocks / threads; left > 0; left--)
            share->bytes += read_at(file, into, (long long)(next(&state) % (uint64_t)(file_bytes / (long long)block)) * (long long)block);
    } else {
        long long all = (file_bytes + (long long)block - 1) / (long long)block;
        long long at = all * share->number / threads, end = all * (share->number + 1) / threads;
        for (; at < end; at++) share->bytes += read_at(file, into, at * (long long)block);
    }
    free(into);
    close(file);
    return NULL;
}

int main(int count, char **given) {
    if (count != 7) {
        fprintf(stderr, "usage: read_file PATH sequential|random BLOCK_BYTES BLOCKS THREADS SEED\n");
        return 2;
    }
    path = given[1];
    is_random = strcmp(given[2], "random") == 0;
    block = (size_t)atoll(given[3]);
    blocks = atoll(given[4]);
    threads = atoi(given[5]);
    seed = (uint64_t)atoll(given[6]);
    struct stat found;
    if (stat(path, &found) < 0 || threads < 1 || threads > MAX_THREADS || block == 0) {
        perror("read_file");
        return 1;
    }
    file_bytes = found.st_size;
    struct timespec began, ended;
    struct share shares[MAX_THREADS] = {0};
    pthread_t running[MAX_THREADS];
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (int number = 0; number < threads; number++) {
        shares[number].number = number;
        pthread_create(&running[number], NULL, work, &shares[number]);
    }
    long long bytes = 0;
    for (int number = 0; number < threads; number++) {
        pthread_join(running[number], NULL);
        bytes += shares[number].bytes;
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%.6f %lld\n", (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9, bytes);
    return 0;
}
