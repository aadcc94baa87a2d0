// See fuse_pump.h.
//
// What is answered here was hashed: when it was fetched, by the Python side, or when it was first read, here (blob.h).
// Whatever is unusual is handed on: the Python side decides, counts and logs. Layouts: include/uapi/linux/fuse.h.

#include "fuse_pump.h"
#include "blob.h"
#include "pack_files.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <vector>

#include <linux/fuse.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

using gp::Blob;
using gp::Packs;
using gp::Room;

namespace {

constexpr std::size_t kRequestBytes = 1 << 16;  // longer than any request to a read-only filesystem

// What one side hands to the other: waits for more, and ends.
template <typename Item> class Queue {
  public:
    void push(Item item) {
        {
            std::lock_guard lock(mutex_);
            items_.push_back(std::move(item));
            ++pushed_;
        }
        filled_.notify_one();
    }

    // Up to `most` items; none if it has ended.
    std::vector<Item> pop(std::size_t most) {
        std::unique_lock lock(mutex_);
        filled_.wait(lock, [&] { return !items_.empty() || ended_; });
        std::vector<Item> taken;
        while (!items_.empty() && taken.size() < most) {
            taken.push_back(std::move(items_.front()));
            items_.pop_front();
        }
        return taken;
    }

    void end() {
        {
            std::lock_guard lock(mutex_);
            ended_ = true;
        }
        filled_.notify_all();
    }

    std::uint64_t pushed() {
        std::lock_guard lock(mutex_);
        return pushed_;
    }

  private:
    std::mutex mutex_;
    std::condition_variable filled_;
    std::deque<Item> items_;
    std::uint64_t pushed_ = 0;
    bool ended_ = false;
};

using Request = std::vector<std::uint8_t>;

}  // namespace

struct gp_pump {
    gp_pump(int fd, const char *folder) : fd_(fd), packs_(folder) {}

    void start(unsigned threads) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);  // signals are the interpreter's
        std::optional<std::system_error> problem;
        try {
            while (threads_.size() < threads) threads_.emplace_back([this] { serve(); });
        } catch (const std::system_error &refused) {
            problem = refused;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (threads_.empty() && problem) throw *problem;  // fewer threads than asked for are good enough
    }

    int attach(const gp_blob &blob) {
        std::unique_lock lock(blobs_mutex_);
        return blobs_.try_emplace(blob.node, std::make_shared<Blob>(blob)).second ? 0 : -EEXIST;
    }

    int detach(std::uint64_t node, unsigned timeout_ms) {
        std::shared_ptr<Blob> blob;
        {
            std::unique_lock lock(blobs_mutex_);
            const auto known = blobs_.find(node);
            if (known == blobs_.end()) return 1;
            blob = std::move(known->second);
            blobs_.erase(known);
        }
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
        while (blob.use_count() > 1) {
            if (std::chrono::steady_clock::now() >= deadline) return 0;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return 1;
    }

    std::int64_t take(void *buffer, std::size_t room) {
        const auto taken = requests_.pop(1);
        if (taken.empty()) return -error_.load();
        if (taken[0].size() > room) return -EMSGSIZE;
        std::memcpy(buffer, taken[0].data(), taken[0].size());
        return static_cast<std::int64_t>(taken[0].size());
    }

    std::int64_t notices(gp_notice *into, std::size_t room) {
        const auto taken = notices_.pop(room);
        std::copy(taken.begin(), taken.end(), into);
        return static_cast<std::int64_t>(taken.size());
    }

    std::uint64_t noticed() { return notices_.pushed(); }

    void join() {
        for (auto &thread : threads_) thread.join();
    }

  private:
    void serve() {
        try {
            std::vector<std::uint8_t> request(kRequestBytes);
            Room room;
            while (true) {
                const ssize_t got = ::read(fd_, request.data(), request.size());
                if (got < 0) {
                    // ENOENT: the request was withdrawn.
                    if (errno == EINTR || errno == EAGAIN || errno == ENOENT) continue;
                    if (errno != ENODEV && errno != ECONNABORTED) error_ = errno;
                    break;
                }
                if (got == 0) break;
                const auto size = static_cast<std::size_t>(got);
                if (!answer_read(request.data(), size, room))
                    requests_.push(Request(request.begin(), request.begin() + got));
            }
        } catch (const std::bad_alloc &) {
            error_ = ENOMEM;
        }
        requests_.end();
        notices_.end();
    }

    // Whether it was a read that could be answered at once.
    bool answer_read(const std::uint8_t *request, std::size_t size, Room &room) {
        fuse_in_header head;
        fuse_read_in asked;
        if (size < sizeof head + sizeof asked) return false;
        std::memcpy(&head, request, sizeof head);
        std::memcpy(&asked, request + sizeof head, sizeof asked);
        if (head.opcode != FUSE_READ || head.len != size || asked.size > GP_MAX_READ_BYTES) return false;
        const auto blob = find(head.nodeid);
        if (!blob || asked.offset >= blob->size_bytes() || asked.size == 0) return false;
        const std::uint64_t end = std::min(asked.offset + asked.size, blob->size_bytes());
        const std::uint32_t first = blob->chunk_at(asked.offset), last = blob->chunk_at(end - 1);
        if (!blob->read(asked.offset, end, first, last, packs_, room)) return false;
        // Told before it is answered: whoever looks after the answer finds it noted.
        if (blob->is_first_read(first, last)) notices_.push({head.nodeid, first, last});
        blob->count(end - asked.offset);
        return send(head.unique, room.answer(), end - asked.offset);
    }

    // False if the kernel refuses the answer as such.
    bool send(std::uint64_t unique, std::uint8_t *answer, std::size_t size) const {
        fuse_out_header head{static_cast<std::uint32_t>(sizeof(fuse_out_header) + size), 0, unique};
        std::array<iovec, 2> parts{{{&head, sizeof head}, {answer, size}}};
        while (::writev(fd_, parts.data(), parts.size()) < 0) {
            if (errno == EINTR) continue;
            // Withdrawn, unmounted, aborted: nobody waits for it.
            return errno == ENOENT || errno == ENODEV || errno == ECONNABORTED;
        }
        return true;
    }

    std::shared_ptr<Blob> find(std::uint64_t node) {
        std::shared_lock lock(blobs_mutex_);
        const auto known = blobs_.find(node);
        return known == blobs_.end() ? nullptr : known->second;
    }

    const int fd_;
    Packs packs_;
    std::shared_mutex blobs_mutex_;
    std::unordered_map<std::uint64_t, std::shared_ptr<Blob>> blobs_;
    Queue<Request> requests_;  // the kernel bounds how many there are
    Queue<gp_notice> notices_;
    std::vector<std::thread> threads_;
    std::atomic<int> error_{0};
};

extern "C" {

gp_pump *gp_pump_start(int fd, const char *packs, unsigned threads) {
    try {
        gp::prepare_hashing();
        auto pump = std::make_unique<gp_pump>(fd, packs);
        pump->start(threads);
        return pump.release();
    } catch (const std::system_error &problem) {
        errno = problem.code().value();
    } catch (const std::bad_alloc &) {
        errno = ENOMEM;
    }
    return nullptr;
}

int gp_pump_attach(gp_pump *pump, const gp_blob *blob) {
    if (blob->chunks == 0 || blob->chunks >= UINT32_MAX || blob->starts[0] != 0) return -EINVAL;
    for (std::uint64_t index = 0; index < blob->chunks; ++index) {
        const std::uint64_t room = std::uint64_t{blob->starts[index + 1]} - blob->starts[index];
        if (blob->starts[index + 1] <= blob->starts[index] || blob->sizes[index] == 0 ||
            blob->sizes[index] > GP_MAX_READ_BYTES || blob->sizes[index] > room * GP_BLOCK_BYTES)
            return -EINVAL;
    }
    return pump->attach(*blob);
}

int gp_pump_detach(gp_pump *pump, uint64_t node, unsigned timeout_ms) { return pump->detach(node, timeout_ms); }

int64_t gp_pump_take(gp_pump *pump, void *buffer, size_t room) { return pump->take(buffer, room); }

int64_t gp_pump_notices(gp_pump *pump, gp_notice *into, size_t room) { return pump->notices(into, room); }

uint64_t gp_pump_noticed(gp_pump *pump) { return pump->noticed(); }

void gp_pump_free(gp_pump *pump) {
    pump->join();
    delete pump;
}
}
