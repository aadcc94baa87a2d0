// Has random runs of chunks checked and written, some of which are damaged or point anywhere, by a kernel that writes
// less than it is asked to, is interrupted and runs full, and looks at all that comes of it.
//
//   fuzz_run FOLDER SEED ROUNDS      prints how many chunks were right, how many were wrong and how many runs failed
//
// Build it with -fsanitize=address,undefined (tests/chunks/test_run.py does).

#include "chunk_run.h"
#include "hashing.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

constexpr std::size_t kBlockBytes = 4096;
constexpr std::uint8_t kUntouched = 0xaa;

std::mt19937_64 dice;
bool disk_is_full = false;  // soon
std::uint64_t calls = 0;

[[noreturn]] void fail(const char *why) {
    std::fprintf(stderr, "%s\n", why);
    std::exit(1);
}

struct Chunks {
    std::vector<std::uint8_t> data, ids;
    std::vector<std::uint64_t> offsets;
    std::vector<std::uint32_t> sizes;
    std::vector<bool> is_within, is_right;

    gp_run run() const { return {data.data(), data.size(), sizes.size(), offsets.data(), sizes.data()}; }
};

void add(Chunks &chunks, bool may_be_wrong) {
    const bool is_within = !may_be_wrong || dice() % 8;
    const std::uint64_t bytes = chunks.data.size();
    const std::uint64_t offset = is_within || dice() % 2 ? dice() % (bytes + !is_within) : dice();
    const std::uint64_t room = offset < bytes ? bytes - offset : 0;
    const std::uint64_t size = is_within ? 1 + dice() % std::min<std::uint64_t>(room, 9000) : room + 1 + dice() % 99999;
    std::vector<std::uint8_t> id(gp::kIdBytes);
    blake3_hasher hasher;
    blake3_hasher_init(&hasher);
    if (is_within) blake3_hasher_update(&hasher, chunks.data.data() + offset, size);
    blake3_hasher_finalize(&hasher, id.data(), id.size());
    const bool is_right = is_within && !(may_be_wrong && dice() % 8 == 0);
    if (!is_right) id[dice() % id.size()] ^= 1 << dice() % 8;
    chunks.ids.insert(chunks.ids.end(), id.begin(), id.end());
    chunks.offsets.push_back(offset);
    chunks.sizes.push_back(static_cast<std::uint32_t>(size));
    chunks.is_within.push_back(is_within);
    chunks.is_right.push_back(is_right);
}

Chunks make() {
    Chunks chunks;
    chunks.data.resize(1 + dice() % (dice() % 4 ? 30000 : 400000));
    for (auto &byte : chunks.data) byte = static_cast<std::uint8_t>(dice());
    const bool may_be_wrong = dice() % 2;
    for (auto count = dice() % (dice() % 8 ? 20 : 1500); count > 0; --count) add(chunks, may_be_wrong);
    return chunks;
}

void check(const Chunks &chunks, std::uint64_t &right, std::uint64_t &wrong) {
    std::vector<std::uint8_t> told(chunks.sizes.size(), 7);
    const gp_run run = chunks.run();
    const std::uint64_t told_wrong = gp_run_check(&run, chunks.ids.data(), told.data());
    for (std::size_t index = 0; index < told.size(); ++index)
        if (told[index] != chunks.is_right[index]) fail("a chunk is judged wrongly");
    if (told_wrong != static_cast<std::uint64_t>(std::count(told.begin(), told.end(), 0))) fail("a wrong count");
    right += told.size() - told_wrong;
    wrong += told_wrong;
}

std::vector<std::uint8_t> padded(const Chunks &chunks) {
    std::vector<std::uint8_t> whole;
    for (std::size_t index = 0; index < chunks.sizes.size(); ++index) {
        const auto *body = chunks.data.data() + chunks.offsets[index];
        whole.insert(whole.end(), body, body + chunks.sizes[index]);
        whole.resize((whole.size() + kBlockBytes - 1) / kBlockBytes * kBlockBytes);
    }
    return whole;
}

// Whether it was written; if so, exactly what and where it should be.
bool write(const Chunks &chunks, const std::string &path) {
    const std::uint64_t at = dice() % 5 * kBlockBytes;
    const bool is_possible = std::all_of(chunks.is_within.begin(), chunks.is_within.end(), [](bool is) { return is; });
    const auto wanted = is_possible ? padded(chunks) : std::vector<std::uint8_t>();
    std::vector<std::uint8_t> file(at + wanted.size() + kBlockBytes, kUntouched), got(file.size());
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (::pwrite(descriptor, file.data(), file.size(), 0) != static_cast<ssize_t>(file.size())) fail("pwrite");
    disk_is_full = dice() % 8 == 0;
    calls = 0;
    const gp_run run = chunks.run();
    const int failed = gp_run_write(&run, descriptor, at);
    if (failed != 0 && failed != (is_possible ? -ENOSPC : -EINVAL)) fail("a wrong error");
    if (!is_possible && (failed == 0 || calls != 0)) fail("what is impossible was written");
    if (::pread(descriptor, got.data(), got.size(), 0) != static_cast<ssize_t>(got.size())) fail("the length changed");
    ::close(descriptor);
    if (failed != 0) std::fill(file.begin(), file.end(), kUntouched);
    if (failed == 0) std::copy(wanted.begin(), wanted.end(), file.begin() + static_cast<std::ptrdiff_t>(at));
    if (std::memcmp(file.data(), got.data(), at) != 0) fail("written before it");
    const auto end = at + wanted.size();
    if (std::memcmp(file.data() + end, got.data() + end, kBlockBytes) != 0) fail("written behind it");
    if (failed == 0 && file != got) fail("something else was written");
    return failed == 0;
}

}  // namespace

// The kernel's, in a bad mood.
extern "C" ssize_t pwritev(int file, const iovec *parts, int count, off_t at) {
    ++calls;
    if (dice() % 8 == 0) return errno = EINTR, -1;
    if (disk_is_full && dice() % 4 == 0) return errno = ENOSPC, -1;
    std::size_t left = dice() % 2 ? SIZE_MAX : 1 + dice() % 20000;
    ssize_t written = 0;
    for (int part = 0; part < count && left > 0; ++part) {
        if (parts[part].iov_len == 0) fail("a part without bytes");
        const std::size_t size = std::min(left, parts[part].iov_len);
        if (::pwrite(file, parts[part].iov_base, size, at + written) != static_cast<ssize_t>(size)) fail("pwrite");
        written += static_cast<ssize_t>(size);
        left -= size;
    }
    return written;
}

int main(int count, char **arguments) {
    if (count != 4) fail("fuzz_run FOLDER SEED ROUNDS");
    const std::string path = std::string(arguments[1]) + "/00000001.pack";
    dice.seed(std::strtoull(arguments[2], nullptr, 10));
    std::uint64_t right = 0, wrong = 0, unwritten = 0;
    for (auto rounds = std::strtoull(arguments[3], nullptr, 10); rounds > 0; --rounds) {
        const Chunks chunks = make();
        check(chunks, right, wrong);
        unwritten += !write(chunks, path);
    }
    std::printf("%llu %llu %llu\n", static_cast<unsigned long long>(right), static_cast<unsigned long long>(wrong),
                static_cast<unsigned long long>(unwritten));
}
