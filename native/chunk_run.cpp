// See chunk_run.h.

#include "chunk_run.h"
#include "hashing.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include <sys/types.h>
#include <sys/uio.h>

namespace {

constexpr std::size_t kBlockBytes = 4096;  // where chunks may start in a pack (glowplug.chunks.chunk.ALIGN_BYTES)
constexpr std::size_t kParts = 1024;       // UIO_MAXIOV

constexpr std::array<std::uint8_t, kBlockBytes> kZeros{};

[[gnu::constructor]] void prepare() { gp::prepare_hashing(); }

bool lies_within_data(const gp_run &run, std::uint64_t index) {
    return run.offsets[index] <= run.data_bytes && run.sizes[index] <= run.data_bytes - run.offsets[index];
}

// The parts of one write, which is made once there are as many as one call takes.
class Writer {
  public:
    Writer(int file, std::uint64_t at) : file_(file), at_(static_cast<off_t>(at)) {}

    // 0 or -errno.
    int add(const std::uint8_t *bytes, std::size_t size) {
        if (size == 0) return 0;
        parts_[count_++] = {const_cast<std::uint8_t *>(bytes), size};
        return count_ < kParts ? 0 : flush();
    }

    int flush() {
        std::size_t done = 0;
        while (done < count_) {
            const ssize_t written = ::pwritev(file_, &parts_[done], static_cast<int>(count_ - done), at_);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) return written < 0 ? -errno : -EIO;
            at_ += written;
            done = behind(done, static_cast<std::size_t>(written));
        }
        count_ = 0;
        return 0;
    }

  private:
    // The first part that is not written wholly, less what is.
    std::size_t behind(std::size_t part, std::size_t written) {
        for (; part < count_ && written >= parts_[part].iov_len; ++part) written -= parts_[part].iov_len;
        if (written > 0) {
            parts_[part].iov_base = static_cast<std::uint8_t *>(parts_[part].iov_base) + written;
            parts_[part].iov_len -= written;
        }
        return part;
    }

    const int file_;
    off_t at_;
    std::array<iovec, kParts> parts_;
    std::size_t count_ = 0;
};

}  // namespace

extern "C" {

uint64_t gp_run_check(const gp_run *run, const uint8_t *ids, uint8_t *is_right) {
    std::uint64_t wrong = 0;
    for (std::uint64_t index = 0; index < run->chunks; ++index) {
        is_right[index] = 0;
        if (lies_within_data(*run, index)) {
            blake3_hasher hasher;
            blake3_hasher_init(&hasher);
            blake3_hasher_update(&hasher, run->data + run->offsets[index], run->sizes[index]);
            is_right[index] = gp::is_named(hasher, ids + index * gp::kIdBytes);
        }
        wrong += !is_right[index];
    }
    return wrong;
}

int gp_run_write(const gp_run *run, int file, uint64_t at) {
    for (std::uint64_t index = 0; index < run->chunks; ++index)
        if (run->sizes[index] == 0 || !lies_within_data(*run, index)) return -EINVAL;
    Writer writer(file, at);
    for (std::uint64_t index = 0; index < run->chunks; ++index) {
        const std::size_t size = run->sizes[index];
        const std::size_t padding = (kBlockBytes - size % kBlockBytes) % kBlockBytes;
        if (const int failed = writer.add(run->data + run->offsets[index], size)) return failed;
        if (const int failed = writer.add(kZeros.data(), padding)) return failed;
    }
    return writer.flush();
}
}
