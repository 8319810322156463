#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "engine/engine_loop.h"

namespace caravan {

/// What the API asks of the engine: EngineLoop's public functions, with their contracts. Tests put
/// an engine in its place that answers what they want.
class Generator {
 public:
  virtual ~Generator() = default;
  virtual std::optional<int64_t> submit(GenerationRequest request,
                                        EngineLoop::OnOutput on_output) = 0;
  virtual void cancel(int64_t id) = 0;
  virtual EngineStats stats() const = 0;
  virtual double stalled_ms() const = 0;
  virtual std::string failure() const = 0;
};

class EngineLoopGenerator final : public Generator {
 public:
  explicit EngineLoopGenerator(EngineLoop& loop) : loop_(&loop) {}
  std::optional<int64_t> submit(GenerationRequest request,
                                EngineLoop::OnOutput on_output) override {
    return loop_->submit(std::move(request), std::move(on_output));
  }
  void cancel(int64_t id) override { loop_->cancel(id); }
  EngineStats stats() const override { return loop_->stats(); }
  double stalled_ms() const override { return loop_->stalled_ms(); }
  std::string failure() const override { return loop_->failure(); }

 private:
  EngineLoop* loop_;
};

}  // namespace caravan
