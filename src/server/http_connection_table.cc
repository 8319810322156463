#include "server/http_connection_table.h"

#include <chrono>
#include <vector>

namespace caravan {

void HttpConnectionTable::add(const std::shared_ptr<HttpConnection>& connection) {
  const std::lock_guard lock(mutex_);
  new_.push_back(connection.get());
  entries_.emplace(connection.get(), Entry{.connection = connection,
                                           .state = State::kNew,
                                           .is_leaving = false,
                                           .place = std::prev(new_.end())});
}

void HttpConnectionTable::remove(HttpConnection* connection) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(connection);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  (entry.is_leaving ? leaving_ : list_of(entry.state)).erase(entry.place);
  entries_.erase(found);
  if (entries_.empty()) is_empty_.notify_all();
}

void HttpConnectionTable::set_state(HttpConnection* connection, State state) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(connection);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  // One that was to leave may have a request by now, which it keeps.
  List& from = entry.is_leaving ? leaving_ : list_of(entry.state);
  List& to = list_of(state);
  to.splice(to.end(), from, entry.place);
  entry.state = state;
  entry.is_leaving = false;
}

std::shared_ptr<HttpConnection> HttpConnectionTable::take_idlest() {
  const std::lock_guard lock(mutex_);
  List& list = new_.size() >= kept_.size() ? new_ : kept_;
  if (list.empty()) return nullptr;
  Entry& entry = entries_.at(list.front());
  entry.is_leaving = true;
  leaving_.splice(leaving_.end(), list, entry.place);
  return entry.connection.lock();
}

bool HttpConnectionTable::is_leaving(HttpConnection* connection) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(connection);
  return found != entries_.end() && found->second.is_leaving;
}

int64_t HttpConnectionTable::size() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(entries_.size() - leaving_.size());
}

void HttpConnectionTable::for_each(
    const std::function<void(const std::shared_ptr<HttpConnection>&)>& visit) const {
  std::vector<std::shared_ptr<HttpConnection>> connections;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [raw, entry] : entries_) {
      if (std::shared_ptr<HttpConnection> connection = entry.connection.lock()) {
        connections.push_back(std::move(connection));
      }
    }
  }
  for (const std::shared_ptr<HttpConnection>& connection : connections) visit(connection);
}

bool HttpConnectionTable::wait_until_empty(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return is_empty_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                            [this] { return entries_.empty(); });
}

}  // namespace caravan
