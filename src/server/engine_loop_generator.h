#pragma once

#include <utility>

#include "server/generator.h"

namespace caravan {

/// The engine's loop as the API's generator; the loop must outlive it.
class EngineLoopGenerator final : public Generator {
 public:
  explicit EngineLoopGenerator(EngineLoop& loop) : loop_(&loop) {}
  std::optional<int64_t> submit(GenerationRequest request,
                                EngineLoop::OnOutput on_output) override {
    return loop_->submit(std::move(request), std::move(on_output));
  }
  void check_queue(int64_t num_requests, int64_t num_prompt_tokens) const override {
    loop_->check_queue(num_requests, num_prompt_tokens);
  }
  void cancel(int64_t id) override { loop_->cancel(id); }
  EngineStats stats() const override { return loop_->stats(); }
  double stalled_ms() const override { return loop_->stalled_ms(); }
  std::string failure() const override { return loop_->failure(); }

 private:
  EngineLoop* loop_;
};

}  // namespace caravan
