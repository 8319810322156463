#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace caravan {

class HttpConnection;

/// The open connections of a server, and which of them does nothing for the longest time. Thread
/// safe.
class HttpConnectionTable {
 public:
  enum class State {
    kNew,   // has not sent its first request yet
    kKept,  // after a request
    kBusy,  // has a request that is being answered
  };

  /// In state kNew.
  void add(const std::shared_ptr<HttpConnection>& connection);
  void remove(HttpConnection* connection);
  void set_state(HttpConnection* connection, State state);

  /// The connection that is to make room, which counts no more: the idlest of the new or of the
  /// kept ones, of whichever there are more. A flood of silent clients makes way for itself, and
  /// ends no connection that is in use. nullptr when all are busy.
  std::shared_ptr<HttpConnection> take_idlest();

  bool is_leaving(HttpConnection* connection) const;

  /// Without those that make room.
  int64_t size() const;
  void for_each(const std::function<void(const std::shared_ptr<HttpConnection>&)>& visit) const;
  /// False when some are left after so many milliseconds.
  bool wait_until_empty(int64_t timeout_ms);

 private:
  using List = std::list<HttpConnection*>;
  struct Entry {
    std::weak_ptr<HttpConnection> connection;
    State state = State::kNew;
    bool is_leaving = false;
    List::iterator place;
  };

  List& list_of(State state) {
    return state == State::kNew ? new_ : state == State::kKept ? kept_ : busy_;
  }

  mutable std::mutex mutex_;
  std::condition_variable is_empty_;
  std::unordered_map<HttpConnection*, Entry> entries_;
  List new_;  // each list: the idlest first
  List kept_;
  List busy_;
  List leaving_;
};

}  // namespace caravan
