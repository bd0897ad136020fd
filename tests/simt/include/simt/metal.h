// The stand-in for <metal_stdlib> and its siblings: enough of the Metal Shading
// Language's library to run compute kernels on something that is not a Mac.
//
// Freestanding on purpose. A kernel may define its own log1p or hypot, as it
// may in Metal, because nothing of the host's library is in sight.
#pragma once

#include "simt/backend.h"
#include "simt/bfloat.h"
#include "simt/limits.h"
#include "simt/logging.h"
#include "simt/math.h"
#include "simt/simdgroup.h"
#include "simt/simdgroup_matrix.h"
#include "simt/type_traits.h"
#include "simt/vec.h"

using metal::as_type;
