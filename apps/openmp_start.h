#pragma once

namespace caravan {

/// OpenMP reads its settings before main(), so the program starts itself once more (2 ms) with
/// - a spin of about 50 us: libgomp's threads spin for milliseconds at every barrier otherwise,
/// which
///   costs most of the speed on a machine that others use too (docs/benchmarks.md, "Waiting
///   threads"); OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user's stay;
/// - as many threads as CPUs can be used and threads can be made. An OMP_NUM_THREADS that is no
///   number, or more than four times that, is replaced with a warning: libgomp ends the program
///   when it cannot make a thread, and crashes with very many.
/// Returns where nothing is to be changed, and where the program cannot be started.
void restart_with_openmp_settings(char** argv);

}  // namespace caravan
