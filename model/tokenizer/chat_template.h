// Recognises the chat template that a model carries. Templates are Jinja programs; we do not run
// them, but know the formats that they write and read the few constants that matter.
#pragma once

#include <string_view>

#include "model/tokenizer/tokenizer.h"

namespace espalier {

// kNone for a template (or no template) that we do not know.
ChatTemplate RecognizeChatTemplate(std::string_view jinja);

}  // namespace espalier
