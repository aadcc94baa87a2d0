/* Chunks that came together are checked and written together (src/glowplug/chunks/run.py calls this).
 *
 * Why it is not Python: a chunk at a time, each hash and each write gives the interpreter's lock away and has to get it
 * back, from as many threads as there are connections.
 */
#ifndef GLOWPLUG_CHUNK_RUN_H
#define GLOWPLUG_CHUNK_RUN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* Chunks whose bytes lie somewhere in one buffer. All of it is the caller's; nothing about it is believed. */
typedef struct gp_run {
    const uint8_t *data;
    uint64_t data_bytes;
    uint64_t chunks;
    const uint64_t *offsets; /* where the bytes of each begin in data */
    const uint32_t *sizes;
} gp_run;

/* Set is_right[i] to 1 if all of chunk i lies within the data and hashes to its name, the 32 bytes at ids + 32 * i;
 * else to 0. How many are wrong. */
uint64_t gp_run_check(const gp_run *run, const uint8_t *ids, uint8_t *is_right);

/* Write the chunks to `file` from `at` on, one behind the other, each with the zeros that pad it to whole blocks.
 * 0, or -errno: then some of it may have been written; -EINVAL, with nothing written, if one has no bytes or does not
 * lie within the data. */
int gp_run_write(const gp_run *run, int file, uint64_t at);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
