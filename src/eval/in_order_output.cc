#include "eval/in_order_output.h"

namespace caravan {

void InOrderOutput::finish(int64_t place, std::string text) {
  num_held_bytes_ += text.size();
  held_.emplace(place, std::move(text));
  while (!held_.empty() && held_.begin()->first == num_out_) {
    const std::string next = std::move(held_.begin()->second);
    held_.erase(held_.begin());
    num_held_bytes_ -= next.size();
    ++num_out_;
    write_(next);
  }
}

}  // namespace caravan
