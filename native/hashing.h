// Chunks are named by the BLAKE3 of their bytes.
#pragma once

#include "blake3/blake3.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gp {

inline constexpr std::size_t kIdBytes = BLAKE3_OUT_LEN;

// Whether what was hashed has this name, of kIdBytes.
inline bool is_named(const blake3_hasher &hasher, const std::uint8_t *id) {
    std::array<std::uint8_t, kIdBytes> found{};
    blake3_hasher_finalize(&hasher, found.data(), found.size());
    return std::memcmp(found.data(), id, found.size()) == 0;
}

// When BLAKE3 is first used it looks what this processor can, without a lock: so this comes before there are threads.
inline void prepare_hashing() {
    static const bool is_prepared = [] {
        std::array<std::uint8_t, kIdBytes> id{};
        blake3_hasher hasher;
        blake3_hasher_init(&hasher);
        blake3_hasher_finalize(&hasher, id.data(), id.size());
        return true;
    }();
    static_cast<void>(is_prepared);
}

}  // namespace gp
