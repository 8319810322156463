#pragma once

#include "apps/run_flags.h"
#include "format/model_dir.h"

namespace caravan {

/// `run --input`: completes the prompts of a file or of standard input, which is read as they are
/// needed. Each completion is written in the order of the input as soon as it and those before it
/// are done; a line that is wrong gets an error in its place and costs no other. Returns the exit
/// status: 0, or 1 when a line failed.
int run_batch(const RunFlags& flags, const ModelDir& dir);

}  // namespace caravan
