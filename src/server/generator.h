#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/engine_loop.h"

namespace caravan {

/// What the API asks of the engine: EngineLoop's public functions, with their contracts. Tests put
/// an engine in its place that answers what they want.
class Generator {
 public:
  virtual ~Generator() = default;
  virtual std::optional<int64_t> submit(GenerationRequest request,
                                        EngineLoop::OnOutput on_output) = 0;
  virtual void check_queue(int64_t num_requests, int64_t num_prompt_tokens) const = 0;
  virtual void cancel(int64_t id) = 0;
  virtual EngineStats stats() const = 0;
  virtual double stalled_ms() const = 0;
  virtual std::string failure() const = 0;
};

}  // namespace caravan
