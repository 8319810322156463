#pragma once

#include <sys/types.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <string>

namespace caravan {

/// The socket that a server listens at: TCP, or a Unix socket when the host ends in ".sock".
class HttpListener {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;
  struct Callbacks {
    std::function<void(Socket)> on_connection;
    /// There is no descriptor for the next connection. Returns whether some will be free at once.
    std::function<bool()> make_room;
  };

  /// Listens. Errors: kIo when the address cannot be bound, or a file that is no socket lies there.
  HttpListener(boost::asio::io_context& io, const std::string& host, int port, bool reuse_port);

  /// Accepts connections, until close().
  void start(Callbacks callbacks);
  /// From any thread.
  void close();

  int port() const { return port_; }
  /// "http://127.0.0.1:8000"
  std::string url() const;

 private:
  void listen_tcp(bool reuse_port);
  void listen_unix();
  void remove_unix_socket();
  template <typename Acceptor>
  boost::asio::awaitable<void> accept_from(Acceptor& acceptor);

  boost::asio::io_context& io_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;
  boost::asio::ip::tcp::acceptor tcp_acceptor_;
  boost::asio::local::stream_protocol::acceptor unix_acceptor_;
  const std::string host_;
  int port_ = 0;
  dev_t socket_device_ = 0;  // of the Unix socket's file
  ino_t socket_inode_ = 0;
  Callbacks callbacks_;
};

/// "10.0.0.1:5555", or "local" for a Unix socket.
std::string peer_name(const HttpListener::Socket& socket);

}  // namespace caravan
