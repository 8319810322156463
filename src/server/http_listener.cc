#include "server/http_listener.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/http_access.h"

namespace caravan {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

constexpr auto kAcceptBackOff = std::chrono::milliseconds(50);
constexpr auto kLogInterval = std::chrono::seconds(10);
constexpr auto kRoomBackOff = std::chrono::milliseconds(2);

std::string join_host_port(const std::string& host, int port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

}  // namespace

std::string peer_name(const HttpListener::Socket& socket) {
  error_code error;
  const asio::generic::stream_protocol::endpoint generic = socket.remote_endpoint(error);
  const int family = generic.protocol().family();
  if (error || (family != AF_INET && family != AF_INET6)) return "local";
  asio::ip::tcp::endpoint endpoint;
  if (generic.size() > endpoint.capacity()) return "local";
  std::memcpy(endpoint.data(), generic.data(), generic.size());
  endpoint.resize(generic.size());
  return join_host_port(endpoint.address().to_string(), endpoint.port());
}

HttpListener::HttpListener(asio::io_context& io, const std::string& host, int port, bool reuse_port)
    : io_(io),
      strand_(asio::make_strand(io)),
      tcp_acceptor_(strand_),
      unix_acceptor_(strand_),
      host_(host),
      port_(port) {
  try {
    is_unix_socket_path(host_) ? listen_unix() : listen_tcp(reuse_port);
  } catch (const boost::system::system_error& error) {
    CARAVAN_FAIL(kIo, "cannot listen on {}: {}", url(), error.code().message());
  }
}

std::string HttpListener::url() const {
  if (is_unix_socket_path(host_)) return "unix:" + host_;
  return "http://" + join_host_port(host_, port_);
}

void HttpListener::listen_tcp(bool reuse_port) {
  error_code error;
  asio::ip::tcp::endpoint endpoint(asio::ip::make_address(host_, error),
                                   static_cast<uint16_t>(port_));
  if (error) {
    asio::ip::tcp::resolver resolver(io_);
    endpoint = *resolver.resolve(host_, std::to_string(port_)).begin();
  }
  tcp_acceptor_.open(endpoint.protocol());
  tcp_acceptor_.set_option(asio::socket_base::reuse_address(true));
  if (reuse_port) tcp_acceptor_.set_option(ReusePort(true));
  tcp_acceptor_.bind(endpoint);
  tcp_acceptor_.listen();
  port_ = tcp_acceptor_.local_endpoint().port();
}

void HttpListener::listen_unix() {
  port_ = 0;
  struct stat status {};
  if (::lstat(host_.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) {
      CARAVAN_FAIL(kIo, "cannot listen on {}: something else than a socket lies there; it is kept",
                   url());
    }
    // A socket that a killed server left behind would be in the way; one in use is not touched.
    asio::local::stream_protocol::socket probe(io_);
    error_code error;
    probe.connect(asio::local::stream_protocol::endpoint(host_), error);
    if (error == asio::error::connection_refused) ::unlink(host_.c_str());
  }
  const asio::local::stream_protocol::endpoint endpoint(host_);
  unix_acceptor_.open(endpoint.protocol());
  unix_acceptor_.bind(endpoint);
  unix_acceptor_.listen();
  if (::lstat(host_.c_str(), &status) == 0) {
    socket_device_ = status.st_dev;
    socket_inode_ = status.st_ino;
  }
}

/// Unless another server has put its own in the place.
void HttpListener::remove_unix_socket() {
  struct stat status {};
  if (::lstat(host_.c_str(), &status) == 0 && S_ISSOCK(status.st_mode) &&
      status.st_dev == socket_device_ && status.st_ino == socket_inode_) {
    ::unlink(host_.c_str());
  }
}

void HttpListener::start(Callbacks callbacks) {
  callbacks_ = std::move(callbacks);
  if (is_unix_socket_path(host_)) {
    asio::co_spawn(strand_, accept_from(unix_acceptor_), asio::detached);
  } else {
    asio::co_spawn(strand_, accept_from(tcp_acceptor_), asio::detached);
  }
}

void HttpListener::close() {
  asio::post(strand_, [this] {
    error_code ignored;
    tcp_acceptor_.close(ignored);
    if (unix_acceptor_.is_open()) {
      unix_acceptor_.close(ignored);
      remove_unix_socket();
    }
  });
}

template <typename Acceptor>
asio::awaitable<void> HttpListener::accept_from(Acceptor& acceptor) {
  asio::steady_timer timer(strand_);
  std::chrono::steady_clock::time_point next_log{};
  while (acceptor.is_open()) {
    Socket socket(asio::make_strand(io_));
    error_code error;
    co_await acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (!acceptor.is_open() || error == asio::error::operation_aborted) break;
    if (error == asio::error::connection_aborted) continue;
    if (error) {
      // Out of descriptors or memory: those who wait in the queue wait until there is room.
      const auto now = std::chrono::steady_clock::now();
      if (now >= next_log) {
        log_warning("cannot accept connections: {}", error.message());
        next_log = now + kLogInterval;
      }
      timer.expires_after(callbacks_.make_room() ? kRoomBackOff : kAcceptBackOff);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    try {
      callbacks_.on_connection(std::move(socket));
    } catch (const std::exception& failure) {
      log_warning("a connection was dropped: {}", failure.what());
    }
  }
}

}  // namespace caravan
