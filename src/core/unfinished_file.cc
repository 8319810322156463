#include "core/unfinished_file.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstring>

namespace caravan {

namespace {

enum State : int { kFree, kClaimed, kRemoved, kNamed };

// Fixed memory, because a signal handler reads it.
struct Slot {
  std::atomic<int> state{kFree};
  std::array<char, PATH_MAX> path{};
};

std::array<Slot, 16> g_slots;

void write_text(const char* text) {
  const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
  static_cast<void>(ignored);  // nothing can be done about it
}

void end_after_tidying(int signal) {
  tidy_unfinished_files();
  std::signal(signal, SIG_DFL);
  std::raise(signal);  // delivered when this handler returns
}

}  // namespace

UnfinishedFile::UnfinishedFile(const std::string& path, OnSignal action) {
  if (path.size() >= PATH_MAX) return;
  for (size_t i = 0; i < g_slots.size(); ++i) {
    int expected = kFree;
    if (!g_slots[i].state.compare_exchange_strong(expected, kClaimed)) continue;
    std::memcpy(g_slots[i].path.data(), path.c_str(), path.size() + 1);
    g_slots[i].state.store(action == OnSignal::kRemove ? kRemoved : kNamed);
    slot_ = static_cast<int>(i);
    return;
  }
}

UnfinishedFile::~UnfinishedFile() {
  if (slot_ >= 0) g_slots[static_cast<size_t>(slot_)].state.store(kFree);
}

void tidy_unfinished_files() {
  for (Slot& slot : g_slots) {
    const int state = slot.state.load();
    if (state == kRemoved) ::unlink(slot.path.data());
    if (state == kNamed) {
      write_text("caravan: ");
      write_text(slot.path.data());
      write_text(" is left behind: run the same command again, or remove it\n");
    }
  }
}

void tidy_on_termination() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    if (::sigaction(signal, nullptr, &action) != 0 || action.sa_handler != SIG_DFL) continue;
    action.sa_handler = end_after_tidying;
    sigfillset(&action.sa_mask);  // one of them at a time
    ::sigaction(signal, &action, nullptr);
  }
}

}  // namespace caravan
