// Drives a pump with random blobs, random and hostile requests, packs that change and are damaged and places that
// come and go under readers, and checks every answer.
//
//   fuzz_pump FOLDER SEED REQUESTS      prints how many were answered and how many were handed on
//
// Build it with -fsanitize=address,undefined or =thread (tests/image/lazy/test_fuse_pump.py does).

#include "blake3/blake3.h"
#include "fuse_pump.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

constexpr std::uint64_t kNode = 77;
constexpr std::uint32_t kPack = 3;
constexpr std::uint64_t kAtOnce = 4;  // requests that wait for their answers
constexpr char kHandedOn[] = "handed on";

[[noreturn]] void fail(const char *why) {
    std::fprintf(stderr, "%s\n", why);
    std::exit(1);
}

struct Content {
    std::vector<std::uint32_t> starts{0}, sizes;
    std::vector<std::int64_t> homes, places;  // where chunks lie, verified or not; what the pump is told of that
    std::vector<std::uint8_t> ids, touched, blob;
    std::vector<std::uint64_t> answered{0, 0};
};

void append_id(std::vector<std::uint8_t> &ids, const std::vector<std::uint8_t> &body) {
    blake3_hasher hasher;
    blake3_hasher_init(&hasher);
    blake3_hasher_update(&hasher, body.data(), body.size());
    ids.resize(ids.size() + GP_ID_BYTES);
    blake3_hasher_finalize(&hasher, ids.data() + ids.size() - GP_ID_BYTES, GP_ID_BYTES);
}

// Chunks with bytes that are never zero, except in some whole pages; in the pack in another order, some damaged.
Content make(std::mt19937_64 &random, const std::string &pack) {
    Content content;
    const auto chunks = 1 + random() % 40;
    std::vector<std::vector<std::uint8_t>> bodies;
    for (std::uint64_t index = 0; index < chunks; ++index) {
        const std::uint32_t most = random() % 8 ? 20000 : GP_MAX_READ_BYTES;
        std::vector<std::uint8_t> body(1 + random() % most);
        for (auto &byte : body) byte = static_cast<std::uint8_t>(1 + random() % 255);
        if (random() % 8 == 0) std::memset(body.data(), 0, body.size());
        const auto blocks = static_cast<std::uint32_t>((body.size() + GP_BLOCK_BYTES - 1) / GP_BLOCK_BYTES);
        content.starts.push_back(content.starts.back() + blocks);
        content.sizes.push_back(static_cast<std::uint32_t>(body.size()));
        content.blob.insert(content.blob.end(), body.begin(), body.end());
        content.blob.resize(std::size_t{content.starts.back()} * GP_BLOCK_BYTES);
        append_id(content.ids, body);
        bodies.push_back(std::move(body));
    }
    content.homes.assign(chunks, -1);
    content.touched.assign(chunks, 0);
    const int file = ::open(pack.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    std::uint64_t block = random() % 5;
    for (std::uint64_t turn = 0; turn < chunks; ++turn) {
        const auto index = random() % 2 ? turn : chunks - 1 - turn;
        if (content.homes[index] >= 0) continue;
        const bool is_verified = random() % 4;
        if (!is_verified && random() % 4 == 0) bodies[index][random() % bodies[index].size()] ^= 1;
        const auto at = static_cast<off_t>(block * GP_BLOCK_BYTES);
        if (::pwrite(file, bodies[index].data(), bodies[index].size(), at) < 0) fail("pwrite");
        content.homes[index] = static_cast<std::int64_t>(std::uint64_t{kPack} << 33 | block << 1 | is_verified);
        block += (bodies[index].size() + GP_BLOCK_BYTES - 1) / GP_BLOCK_BYTES + random() % 2;
    }
    ::close(file);
    content.places = content.homes;
    if (random() % 8 == 0) ::truncate(pack.c_str(), static_cast<off_t>(random() % (block * GP_BLOCK_BYTES + 1)));
    return content;
}

std::vector<std::uint8_t> hostile(std::mt19937_64 &random, std::vector<std::uint8_t> request) {
    for (auto flips = random() % 4; flips > 0; --flips) request[random() % request.size()] ^= 1 << random() % 8;
    if (random() % 2) request.resize(1 + random() % request.size());
    return request;
}

std::vector<std::uint8_t> read_request(std::mt19937_64 &random, std::uint64_t blob_bytes) {
    fuse_in_header head{};
    fuse_read_in asked{};
    head.len = sizeof head + sizeof asked;
    head.opcode = FUSE_READ;
    head.unique = random();
    head.nodeid = kNode;
    asked.offset = random() % (blob_bytes + 10000);
    asked.size = static_cast<std::uint32_t>(random() % (random() % 4 ? 70000 : GP_MAX_READ_BYTES + 1000));
    std::vector<std::uint8_t> request(head.len);
    std::memcpy(request.data(), &head, sizeof head);
    std::memcpy(request.data() + sizeof head, &asked, sizeof asked);
    return request;
}

// As the Python side does while reads are under way: a place is forgotten, found again, found anew.
void move_some(std::mt19937_64 &random, Content &content) {
    for (auto moves = random() % 3; moves > 0; --moves) {
        const auto index = random() % content.places.size();
        const std::int64_t place = random() % 2 ? content.homes[index] : -1;
        __atomic_store_n(&content.places[index], place, __ATOMIC_RELEASE);
    }
}

// Receive one packet and check it: true if it answers one of those asked, false if that was handed on. Forgets that.
bool check(int socket, std::vector<std::vector<std::uint8_t>> &asked, const std::vector<std::uint8_t> &blob) {
    static std::vector<std::uint8_t> packet(2 << 20);
    const auto received = ::recv(socket, packet.data(), packet.size(), 0);
    if (received <= 0) fail("recv");
    const std::vector<std::uint8_t> got(packet.begin(), packet.begin() + received);
    if (std::memcmp(got.data(), kHandedOn, sizeof kHandedOn) == 0) {
        const auto same = std::find(asked.begin(), asked.end(), decltype(got)(got.begin() + sizeof kHandedOn, got.end()));
        if (same == asked.end()) fail("a request was changed on its way");
        asked.erase(same);
        return false;
    }
    fuse_out_header out;
    fuse_in_header head{};
    fuse_read_in wanted{};
    std::memcpy(&out, got.data(), sizeof out);
    const auto same = std::find_if(asked.begin(), asked.end(), [&](const auto &request) {
        if (request.size() < sizeof head + sizeof wanted) return false;
        std::memcpy(&head, request.data(), sizeof head);
        std::memcpy(&wanted, request.data() + sizeof head, sizeof wanted);
        return head.unique == out.unique;
    });
    const auto length = got.size() - sizeof out;
    if (same == asked.end() || out.error != 0 || out.len != got.size()) fail("an answer has a wrong head");
    if (wanted.offset >= blob.size() || length != std::min<std::uint64_t>(wanted.size, blob.size() - wanted.offset))
        fail("an answer has a wrong length");
    if (std::memcmp(got.data() + sizeof out, blob.data() + wanted.offset, length) != 0)
        fail("an answer has wrong bytes");
    asked.erase(same);
    return true;
}

}  // namespace

int main(int count, char **arguments) {
    if (count != 4) fail("fuzz_pump FOLDER SEED REQUESTS");
    const std::string folder = arguments[1];
    std::filesystem::create_directories(folder);
    char name[32];
    std::snprintf(name, sizeof name, "/%08u.pack", kPack);
    std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
    const auto requests = std::strtoull(arguments[3], nullptr, 10);

    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) fail("socketpair");
    const int room = 4 << 20;
    if (::setsockopt(ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) != 0) fail("setsockopt");
    gp_pump *pump = gp_pump_start(ends[1], folder.c_str(), 3);
    if (!pump) fail("gp_pump_start");
    std::thread hand_back([&] {
        std::vector<std::uint8_t> request(1 << 16);
        while (const auto size = gp_pump_take(pump, request.data(), request.size())) {
            if (size < 0) return;
            std::vector<std::uint8_t> packet(kHandedOn, kHandedOn + sizeof kHandedOn);
            packet.insert(packet.end(), request.begin(), request.begin() + size);
            if (::send(ends[1], packet.data(), packet.size(), MSG_NOSIGNAL) < 0) return;
        }
    });
    std::thread follow([&] {
        std::vector<gp_notice> notices(16);
        while (gp_pump_notices(pump, notices.data(), notices.size()) > 0) {}
    });

    std::uint64_t answered = 0, handed_on = 0;
    Content content;
    for (std::uint64_t number = 0; number < requests;) {
        if (number % 200 == 0) {
            if (!gp_pump_detach(pump, kNode, 10000)) fail("a blob stays in use");
            content = make(random, folder + name);
            const gp_blob blob{kNode,
                               content.sizes.size(),
                               content.starts.data(),
                               content.sizes.data(),
                               content.ids.data(),
                               content.places.data(),
                               content.touched.data(),
                               content.answered.data()};
            if (gp_pump_attach(pump, &blob) != 0) fail("a blob is refused");
        }
        std::vector<std::vector<std::uint8_t>> asked;
        for (; asked.size() < kAtOnce; ++number) {
            asked.push_back(read_request(random, content.blob.size()));
            if (random() % 8 == 0) asked.back() = hostile(random, asked.back());
            if (::send(ends[0], asked.back().data(), asked.back().size(), 0) < 0) fail("send");
        }
        move_some(random, content);
        for (; !asked.empty(); ++(check(ends[0], asked, content.blob) ? answered : handed_on)) {}
    }
    ::close(ends[0]);
    hand_back.join();
    follow.join();
    gp_pump_free(pump);
    ::close(ends[1]);
    std::printf("%llu %llu\n", static_cast<unsigned long long>(answered), static_cast<unsigned long long>(handed_on));
}
