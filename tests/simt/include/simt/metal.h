// The stand-in for <metal_stdlib> and its siblings: enough of the Metal Shading
// Language's library to run compute kernels on something that is not a Mac.
//
// Nothing of the host's library is included. So a kernel may define its own
// log1p or hypot, as in Metal.
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
