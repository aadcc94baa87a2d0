// The SSD tier's pack files, as the pump reads them: descriptors that are kept, and reads that are whole or not at all.
#pragma once

#include "fuse_pump.h"

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace gp {

inline constexpr std::size_t kOpenPacks = 128;
// What is not in page cache and at least this long is read past it: it is kept in the image's own page cache,
// and once is enough. Shorter reads are of files that lie among others, which the disk's read-ahead brings too.
inline constexpr std::size_t kDirectBytes = 256 << 10;
inline constexpr std::size_t kExpectedBytes = 8 << 20;
inline constexpr long kCachestat = 451;  // not in the headers of Debian 12; the same number on every architecture

// A pack file, opened twice: through the page cache, and past it (-1 where the filesystem cannot).
class Pack {
  public:
    Pack(int cached, int direct) : cached_(cached), direct_(direct) {}
    ~Pack() {
        ::close(cached_);
        if (direct_ >= 0) ::close(direct_);
    }
    Pack(const Pack &) = delete;
    Pack &operator=(const Pack &) = delete;

    bool is_linked() const {
        struct stat status;
        return ::fstat(cached_, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink > 0;
    }

    // All of it; false if the pack ends before or cannot be read. May write up to the next block behind `size`.
    bool read(std::uint8_t *into, std::size_t size, std::uint64_t offset) const {
        std::size_t done = 0;
        if (size < kDirectBytes || may_be_cached(size, offset)) {
            iovec part{into, size};
            const ssize_t got = ::preadv2(cached_, &part, 1, static_cast<off_t>(offset), RWF_NOWAIT);
            if (got == static_cast<ssize_t>(size)) return true;
            done = got > 0 ? static_cast<std::size_t>(got) / GP_BLOCK_BYTES * GP_BLOCK_BYTES : 0;
        }
        if (size - done >= kDirectBytes) done += read_past_cache(into + done, size - done, offset + done);
        return read_through_cache(into + done, size - done, offset + done);
    }

    // The same, but what is read stays in page cache; and nothing is written behind `size`.
    bool read_through_cache(std::uint8_t *into, std::size_t size, std::uint64_t offset) const {
        std::size_t done = 0;
        while (done < size) {
            const ssize_t more = ::pread(cached_, into + done, size - done, static_cast<off_t>(offset + done));
            if (more < 0 && errno == EINTR) continue;
            if (more <= 0) return false;
            done += static_cast<std::size_t>(more);
        }
        return true;
    }

    // Have the disk begin to read what will be read through the page cache, if that is much, and what lies behind:
    // whoever wants a part of a long chunk mostly goes on from there.
    void expect(std::size_t size, std::uint64_t offset) const {
        if (size < kDirectBytes) return;
        ::posix_fadvise(cached_, static_cast<off_t>(offset), static_cast<off_t>(size + kExpectedBytes), POSIX_FADV_WILLNEED);
    }

  private:
    // Whether all of it is in page cache; true where the kernel cannot tell (before 6.5). A read that must not wait
    // does not do for that: where it finds nothing it begins to read ahead, and the disk reads everything twice.
    bool may_be_cached(std::size_t size, std::uint64_t offset) const {
        std::array<std::uint64_t, 2> asked{offset, size};
        std::array<std::uint64_t, 5> counts{};  // the first: pages in page cache
        if (::syscall(kCachestat, cached_, asked.data(), counts.data(), 0U) != 0) return true;
        return counts[0] >= (offset + size - 1) / GP_BLOCK_BYTES - offset / GP_BLOCK_BYTES + 1;
    }

    // How much of it could be read, in whole blocks up to the last: perhaps nothing.
    std::size_t read_past_cache(std::uint8_t *into, std::size_t size, std::uint64_t offset) const {
        if (direct_ < 0 || offset % GP_BLOCK_BYTES || reinterpret_cast<std::uintptr_t>(into) % GP_BLOCK_BYTES) return 0;
        const std::size_t room = (size + GP_BLOCK_BYTES - 1) / GP_BLOCK_BYTES * GP_BLOCK_BYTES;
        const ssize_t got = ::pread(direct_, into, room, static_cast<off_t>(offset));
        if (got <= 0) return 0;
        const auto read = static_cast<std::size_t>(got);
        return read >= size ? size : read / GP_BLOCK_BYTES * GP_BLOCK_BYTES;
    }

    const int cached_, direct_;
};

// Descriptors of pack files, shared by the threads; who reads holds on to one that is dropped meanwhile.
class Packs {
  public:
    explicit Packs(std::string folder) : folder_(std::move(folder)) {}

    // Null if there is no such pack (any more).
    std::shared_ptr<const Pack> open(std::uint32_t number) {
        {
            std::shared_lock lock(mutex_);
            const auto known = open_.find(number);
            if (known != open_.end() && known->second->is_linked()) return known->second;
        }
        std::array<char, 24> name{};
        std::snprintf(name.data(), name.size(), "/%08u.pack", number);
        const std::string path = folder_ + name.data();
        const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
        const int fd = ::open(path.c_str(), flags);
        std::unique_lock lock(mutex_);
        if (fd < 0) {
            open_.erase(number);
            return nullptr;
        }
        auto opened = std::make_shared<const Pack>(fd, ::open(path.c_str(), flags | O_DIRECT));
        if (!opened->is_linked()) return nullptr;
        // Deleted packs keep their room on the disk as long as they are open here.
        std::erase_if(open_, [](const auto &entry) { return !entry.second->is_linked(); });
        if (open_.size() >= kOpenPacks) open_.clear();
        open_[number] = opened;
        return opened;
    }

  private:
    const std::string folder_;
    std::shared_mutex mutex_;
    std::unordered_map<std::uint32_t, std::shared_ptr<const Pack>> open_;
};

}  // namespace gp
