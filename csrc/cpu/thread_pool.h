// One persistent pool of threads for all products of the process.
#pragma once

namespace nibble::cpu {

// Returns the number of threads for one call, with the calling thread: the CPUs
// that the process may use, or NIBBLE_NUM_THREADS. Throws std::invalid_argument
// if that is not a positive integer.
int thread_count();

// Calls body(context, i) for each i < count, on the pool and the calling
// thread, and returns when all are done. While another caller uses the pool,
// the calling thread does everything: there are never more busy threads than
// callers and pool together. If body throws, no more items begin. When those
// that have begun are done, the first exception is thrown to the caller.
void parallel_for(int count, void (*body)(void* context, int i), void* context);

// The same for a callable.
template <typename Fn>
void parallel_for(int count, Fn&& fn) {
  parallel_for(
      count,
      [](void* context, int i) { (*static_cast<Fn*>(context))(i); },
      &fn);
}

}  // namespace nibble::cpu
