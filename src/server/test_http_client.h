#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <string_view>

#include "server/http_head.h"

namespace caravan::testing {

struct RawResponse {
  int status = 0;  // 0: the connection ended before a whole response
  std::map<std::string, std::string> headers;
  std::string body;
  int num_chunks = 0;
  bool is_complete = false;
};

/// A client that sends bytes as they are and reads responses, one after the other. No read waits
/// longer than 20 s.
class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval timeout = {.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    is_connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool is_connected() const { return is_connected_; }
  int fd() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  /// The kernel sends RST instead of FIN.
  void reset() {
    const linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }
  void end_sending() { shutdown(fd_, SHUT_WR); }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // the server may have closed: its answer tells
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void get(const std::string& path, const std::string& headers = "") {
    send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n");
  }
  void post(const std::string& path, const std::string& body, const std::string& headers = "") {
    send("POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  RawResponse read(bool has_body = true) {
    RawResponse response;
    const std::string head = take_through("\r\n\r\n");
    if (head.size() < 12) return response;
    for (size_t begin = head.find("\r\n") + 2; begin + 2 < head.size();) {
      const size_t end = head.find("\r\n", begin);
      const size_t colon = head.find(": ", begin);
      EXPECT_LT(colon, end) << head;
      const std::string name = ascii_lower(head.substr(begin, colon - begin));
      EXPECT_EQ(response.headers.count(name), 0u) << "twice: " << name;
      response.headers[name] = head.substr(colon + 2, end - colon - 2);
      begin = end + 2;
    }
    response.status = std::stoi(head.substr(9, 3));
    if (!has_body || response.status == 204 || response.status == 100) {
      response.is_complete = true;
    } else if (response.headers.count("content-length") != 0) {
      const size_t size = std::stoul(response.headers["content-length"]);
      response.is_complete = fill(size);
      response.body = take(std::min(size, input_.size()));
    } else if (response.headers.count("transfer-encoding") != 0) {
      read_chunks(response);
    } else {
      while (receive()) {
      }
      response.body = take(input_.size());
      response.is_complete = true;
    }
    return response;
  }
  /// Whether the server has closed: reads until it does.
  bool is_closed() {
    while (receive()) {
    }
    return has_ended_;
  }
  /// What has come, up to and with `mark`, or all before the end.
  std::string take_through(const std::string& mark) {
    while (input_.find(mark) == std::string::npos && receive()) {
    }
    const size_t at = input_.find(mark);
    return take(at == std::string::npos ? input_.size() : at + mark.size());
  }

 private:
  bool receive() {
    char buffer[65536];
    const ssize_t count = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (count > 0) input_.append(buffer, static_cast<size_t>(count));
    has_ended_ = count == 0 || (count < 0 && errno == ECONNRESET);
    return count > 0;
  }
  bool fill(size_t size) {
    while (input_.size() < size) {
      if (!receive()) return false;
    }
    return true;
  }
  std::string take(size_t size) {
    const std::string taken = input_.substr(0, size);
    input_.erase(0, size);
    return taken;
  }
  void read_chunks(RawResponse& response) {
    for (;;) {
      const std::string line = take_through("\r\n");
      if (line.size() < 3) return;
      const size_t size = std::stoul(line, nullptr, 16);
      if (!fill(size + 2)) return;
      response.body += take(size);
      EXPECT_EQ(take(2), "\r\n");
      if (size == 0) {
        response.is_complete = true;
        return;
      }
      ++response.num_chunks;
    }
  }

  int fd_ = -1;
  bool is_connected_ = false;
  bool has_ended_ = false;
  std::string input_;
};

}  // namespace caravan::testing
