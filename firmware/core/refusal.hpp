/// Why something that came from outside was refused.
#pragma once

namespace fajma {

/// In the words of docs/wire.md; `code` gives them as text.
enum class Refusal : unsigned char {
    none,
    bad_topic,
    bad_device,
    too_large,
    not_cose,
    not_cbor,
    too_deep,
    duplicate_key,
    wrong_algorithm,
    bad_key_id,
    wrong_device,
    unknown_key,
    not_authentic,
    not_senml,
    not_understood,
    bad_pack,
    stale,
};

inline const char* code(Refusal refusal) {
    static const char* const codes[] = {
        "none",          "bad_topic",     "bad_device",      "too_large",  "not_cose",     "not_cbor",
        "too_deep",      "duplicate_key", "wrong_algorithm", "bad_key_id", "wrong_device", "unknown_key",
        "not_authentic", "not_senml",     "not_understood",  "bad_pack",   "stale",
    };
    return codes[static_cast<unsigned char>(refusal)];
}

}  // namespace fajma
