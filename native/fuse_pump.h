/* The inner loop of the blob daemon, as its Python side calls it (src/glowplug/image/lazy/fuse_pump.py).
 *
 * A pump has the descriptor of a FUSE connection and a few threads. They read the kernel's requests and answer
 * those reads that need nothing but bytes on this machine, which are hashed the first time; all other requests, and
 * reads of bytes that turn out wrong, are handed on, unchanged, to whoever calls gp_pump_take. Why it is not Python: one interpreter answers 7,000 reads
 * a second at most, and an import of torch from an empty cache makes 3,500 while the same interpreter fetches.
 */
#ifndef GLOWPLUG_FUSE_PUMP_H
#define GLOWPLUG_FUSE_PUMP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

enum { GP_PUMP_VERSION = 2, GP_BLOCK_BYTES = 4096, GP_MAX_READ_BYTES = 1 << 20, GP_ID_BYTES = 32 };

typedef struct gp_pump gp_pump;

/* A blob and the arrays of it that both sides share. They belong to the caller, have one entry per chunk, and must
 * not move before gp_pump_detach has returned 1. */
typedef struct gp_blob {
    uint64_t node;           /* its number in the FUSE filesystem */
    uint64_t chunks;
    const uint32_t *starts;  /* first blocks, in units of GP_BLOCK_BYTES; one more entry: the end */
    const uint32_t *sizes;   /* bytes, 1 to GP_MAX_READ_BYTES, without the padding to whole blocks */
    const uint8_t *ids;      /* GP_ID_BYTES each: the BLAKE3 of a chunk's bytes */
    int64_t *places;         /* pack << 33 | block << 1 | is verified; negative: not here. Changed by the caller;
                              * the pump sets the last bit of one whose bytes it has found right */
    const uint8_t *touched;  /* 0: not read so far. Changed by the caller, when it hears of a read */
    uint64_t *answered;      /* two: reads answered here, bytes in them. Changed by the pump */
} gp_blob;

/* A read that is answered here and is the first of some of its chunks. */
typedef struct gp_notice {
    uint64_t node;
    uint32_t first_chunk;
    uint32_t last_chunk;
} gp_notice;

/* Start `threads` threads on `fd`, which stays the caller's. `packs` is the folder of the files NNNNNNNN.pack.
 * NULL with errno set if that cannot be done. */
gp_pump *gp_pump_start(int fd, const char *packs, unsigned threads);

/* Answer reads of this blob from now on. 0, or -EEXIST if its node is taken, -EINVAL for an impossible blob. */
int gp_pump_attach(gp_pump *pump, const gp_blob *blob);

/* Hand on reads of this node from now on. 1 once no thread uses its arrays, 0 if one still does after the timeout. */
int gp_pump_detach(gp_pump *pump, uint64_t node, unsigned timeout_ms);

/* Wait for the next request to hand on and copy it to `buffer`. Its length; 0: the connection has ended;
 * -errno: it broke; -EMSGSIZE: the request is longer than `room`, and is lost. */
int64_t gp_pump_take(gp_pump *pump, void *buffer, size_t room);

/* Wait for notices and copy up to `room` of them. How many; 0: the connection has ended. */
int64_t gp_pump_notices(gp_pump *pump, gp_notice *into, size_t room);

/* How many notices there were so far, taken or not. */
uint64_t gp_pump_noticed(gp_pump *pump);

/* After the connection has ended: wait for the threads and free everything. */
void gp_pump_free(gp_pump *pump);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
