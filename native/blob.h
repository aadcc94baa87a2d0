// A blob's chunks as the pump reads them: each is hashed the first time, and believed at the same place from then on.
//
// One thing can happen to a place that was verified: a prune gives it up, and then it is a hole, which reads as zeros.
// So a piece of a verified chunk whose last page is all zeros is not answered here, but hashed again by the Python
// side. (The last page is enough: a hole is punched over whole chunks.)
#pragma once

#include "fuse_pump.h"
#include "hashing.h"
#include "pack_files.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_set>

namespace gp {

inline constexpr int kPackShift = 33;
inline constexpr std::int64_t kVerified = 1;
inline constexpr std::size_t kPieceBytes = 128 << 10;  // what is hashed while it is in the processor's own cache

inline bool all_zeros(const std::uint8_t *bytes, std::size_t size) {
    return size == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0);
}

// What a thread reads into. Memory that is not written to costs nothing.
class Room {
  public:
    Room() : answer_(allocate(GP_MAX_READ_BYTES + GP_BLOCK_BYTES)), piece_(allocate(kPieceBytes)) {}

    std::uint8_t *answer() { return answer_.get(); }  // a read's bytes, and up to a block behind them
    std::uint8_t *piece() { return piece_.get(); }    // kPieceBytes
    // Where the chunks of a read were found to lie: as many as there can be in one.
    std::array<std::int64_t, GP_MAX_READ_BYTES / GP_BLOCK_BYTES + 1> places{};

  private:
    using Bytes = std::unique_ptr<std::uint8_t, decltype(&std::free)>;
    static Bytes allocate(std::size_t size) {
        Bytes bytes(static_cast<std::uint8_t *>(std::aligned_alloc(GP_BLOCK_BYTES, size)), &std::free);
        if (!bytes) throw std::bad_alloc();
        return bytes;
    }
    const Bytes answer_, piece_;
};

// Which chunks somebody reads and hashes as a whole, to answer a part of them: the others who want a part wait.
class Turns {
  public:
    // One thread's turn, until it goes; `is_mine` is false if the thread has waited for somebody else's instead.
    class Turn {
      public:
        Turn(Turns &turns, std::uint32_t index) : turns_(turns), index_(index), is_mine(turns.begin(index)) {}
        ~Turn() {
            if (is_mine) turns_.end(index_);
        }
        Turn(const Turn &) = delete;
        Turn &operator=(const Turn &) = delete;

      private:
        Turns &turns_;
        const std::uint32_t index_;

      public:
        const bool is_mine;
    };

  private:
    bool begin(std::uint32_t index) {
        std::unique_lock lock(mutex_);
        if (taken_.insert(index).second) return true;
        ended_.wait(lock, [&] { return !taken_.contains(index); });
        return false;
    }

    void end(std::uint32_t index) {
        {
            std::lock_guard lock(mutex_);
            taken_.erase(index);
        }
        ended_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable ended_;
    std::unordered_set<std::uint32_t> taken_;
};

class Blob {
  public:
    explicit Blob(const gp_blob &shared) : shared_(shared) {}

    std::uint64_t size_bytes() const { return start_of(static_cast<std::uint32_t>(shared_.chunks)); }

    std::uint32_t chunk_at(std::uint64_t offset) const {
        const auto block = static_cast<std::uint32_t>(offset / GP_BLOCK_BYTES);
        const auto *end = shared_.starts + shared_.chunks + 1;
        return static_cast<std::uint32_t>(std::upper_bound(shared_.starts, end, block) - shared_.starts - 1);
    }

    // Put bytes start..end, which are those of chunks first..last, into room.answer(). False if some of them are not
    // here, or are not what they should be: then nothing in there is to be used.
    bool read(std::uint64_t start, std::uint64_t end, std::uint32_t first, std::uint32_t last, Packs &packs,
              Room &room) {
        std::uint32_t index = first;
        while (index <= last) {
            // Each place is looked at once: it may change at any moment, and two looks would make one place of two.
            const std::int64_t place = place_of(index);
            if (place < 0) return false;
            if (!can_be_read_in_place(place, index, start, end)) {
                const Turns::Turn turn(turns_, index);
                if (turn.is_mine ? !read_around(index, place, start, end, packs, room) : !is_verified(place_of(index)))
                    return false;
                if (turn.is_mine) ++index;
                continue;
            }
            // Chunks that follow each other in one pack as they do in the blob are read together.
            room.places[0] = place;
            std::uint32_t behind = index + 1;
            for (; behind <= last; ++behind) {
                const std::int64_t next = room.places[behind - index] = place_of(behind);
                if (!follows(next, behind, place, index) || !can_be_read_in_place(next, behind, start, end)) break;
            }
            if (!read_run(index, behind, start, end, packs, room)) return false;
            index = behind;
        }
        return true;
    }

    bool is_first_read(std::uint32_t first, std::uint32_t last) const {
        for (std::uint32_t index = first; index <= last; ++index)
            if (__atomic_load_n(shared_.touched + index, __ATOMIC_RELAXED) == 0) return true;
        return false;
    }

    void count(std::uint64_t bytes) const {
        __atomic_fetch_add(shared_.answered, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(shared_.answered + 1, bytes, __ATOMIC_RELAXED);
    }

  private:
    std::int64_t place_of(std::uint32_t index) const {
        return __atomic_load_n(shared_.places + index, __ATOMIC_ACQUIRE);
    }
    static bool is_verified(std::int64_t place) { return place >= 0 && (place & kVerified); }
    static std::uint32_t pack_of(std::int64_t place) { return static_cast<std::uint32_t>(place >> kPackShift); }
    static std::uint64_t offset_of(std::int64_t place) {
        return ((static_cast<std::uint64_t>(place) & ((std::uint64_t{1} << kPackShift) - 1)) >> 1) * GP_BLOCK_BYTES;
    }
    // It is verified, or all of it is wanted.
    bool can_be_read_in_place(std::int64_t place, std::uint32_t index, std::uint64_t start, std::uint64_t end) const {
        return is_verified(place) || (start <= start_of(index) && content_end(index) <= end);
    }
    // Whether a chunk is as far from another in one pack as in the blob.
    bool follows(std::int64_t place, std::uint32_t index, std::int64_t first_place, std::uint32_t first) const {
        const std::int64_t blocks = std::int64_t{shared_.starts[index]} - shared_.starts[first];
        return place >= 0 && (place >> 1) - (first_place >> 1) == blocks;
    }
    std::uint64_t start_of(std::uint32_t index) const {
        return std::uint64_t{shared_.starts[index]} * GP_BLOCK_BYTES;
    }
    std::uint64_t content_end(std::uint32_t index) const { return start_of(index) + shared_.sizes[index]; }

    // Chunks index..behind-1, which lie in one pack as in the blob, at room.places.
    bool read_run(std::uint32_t index, std::uint32_t behind, std::uint64_t start, std::uint64_t end, Packs &packs,
                  Room &room) const {
        const std::uint64_t from = std::max(start, start_of(index));
        const std::uint64_t to = std::min(end, content_end(behind - 1));
        if (from < to) {
            const auto pack = packs.open(pack_of(room.places[0]));
            const std::uint64_t at = offset_of(room.places[0]) + (from - start_of(index));
            if (!pack || !pack->read(room.answer() + (from - start), to - from, at)) return false;
        }
        for (std::uint32_t one = index; one < behind; ++one) {
            const std::int64_t place = room.places[one - index];
            const bool is_right = is_verified(place) ? cannot_be_a_hole(one, start, end, room.answer())
                                                     : verify(one, place, room.answer() + (start_of(one) - start));
            if (!is_right) return false;
            pad(one, start, end, room.answer());
        }
        return true;
    }

    // Read and hash all of a chunk, keeping what of it is in start..end.
    bool read_around(std::uint32_t index, std::int64_t place, std::uint64_t start, std::uint64_t end, Packs &packs,
                     Room &room) const {
        const auto pack = packs.open(pack_of(place));
        if (!pack) return false;
        const std::uint64_t begin = start_of(index);
        pack->expect(shared_.sizes[index], offset_of(place));
        blake3_hasher hasher;
        blake3_hasher_init(&hasher);
        for (std::uint64_t at = begin; at < content_end(index); at += kPieceBytes) {
            const std::uint64_t size = std::min<std::uint64_t>(kPieceBytes, content_end(index) - at);
            if (!pack->read_through_cache(room.piece(), size, offset_of(place) + (at - begin))) return false;
            blake3_hasher_update(&hasher, room.piece(), size);
            const std::uint64_t from = std::max(start, at), to = std::min(end, at + size);
            if (from < to) std::memcpy(room.answer() + (from - start), room.piece() + (from - at), to - from);
        }
        if (!conclude(hasher, index, place)) return false;
        pad(index, start, end, room.answer());
        return true;
    }

    bool verify(std::uint32_t index, std::int64_t place, const std::uint8_t *content) const {
        blake3_hasher hasher;
        blake3_hasher_init(&hasher);
        blake3_hasher_update(&hasher, content, shared_.sizes[index]);
        return conclude(hasher, index, place);
    }

    // Whether it is the chunk that was hashed; then that is noted of its place, unless it lies elsewhere by now.
    bool conclude(const blake3_hasher &hasher, std::uint32_t index, std::int64_t place) const {
        if (!is_named(hasher, shared_.ids + std::size_t{index} * kIdBytes)) return false;
        __atomic_compare_exchange_n(shared_.places + index, &place, place | kVerified, false, __ATOMIC_RELEASE,
                                    __ATOMIC_RELAXED);
        return true;
    }

    bool cannot_be_a_hole(std::uint32_t index, std::uint64_t start, std::uint64_t end, const std::uint8_t *answer) const {
        const std::uint64_t from = std::max(start, start_of(index));
        const std::uint64_t to = std::min(end, content_end(index));
        if (from >= to) return true;
        const std::uint64_t page = std::max(from, (to - 1) / GP_BLOCK_BYTES * GP_BLOCK_BYTES);
        return !all_zeros(answer + (page - start), to - page);
    }

    // Between a chunk's end and the next block are zeros.
    void pad(std::uint32_t index, std::uint64_t start, std::uint64_t end, std::uint8_t *answer) const {
        const std::uint64_t padding = std::max(start, content_end(index));
        const std::uint64_t padded = std::min(end, start_of(index + 1));
        if (padding < padded) std::memset(answer + (padding - start), 0, padded - padding);
    }

    const gp_blob shared_;
    Turns turns_;
};

}  // namespace gp
