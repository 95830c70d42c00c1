// How far branches share KV.
#pragma once

namespace espalier {

// none: every branch computes and reads its own path. tree: branches of one request share.
// cache: requests share too.
enum class Sharing { kNone, kTree, kCache };

}  // namespace espalier
