/// Records of a SenML pack (RFC 8428, CBOR), as far as a device reads them: what it is told.
#pragma once

#include <cstdint>
#include <string_view>

#include "bytes.hpp"
#include "cbor.hpp"
#include "identity.hpp"
#include "refusal.hpp"

namespace fajma {

/// Labels (RFC 8428, section 6).
namespace label {
constexpr std::int64_t bver = -1, bn = -2, bt = -3, bu = -4, bv = -5, bs = -6;
constexpr std::int64_t n = 0, u = 1, v = 2, vs = 3, vb = 4, s = 5, t = 6, ut = 7, vd = 8;
}  // namespace label

/// What SenML takes for a time, and not for a span from now (RFC 8428, section 4.5.3); and the end of 9999.
constexpr std::uint64_t first_absolute_ms = (std::uint64_t{1} << 28) * 1000;
constexpr std::uint64_t year_10000_ms = 253402300800000;

/// One record; the `has_...` say which fields it states.
struct Record {
    std::string_view name;
    bool has_value = false;
    cbor::Item value;
    bool has_truth = false;
    cbor::Item truth;
    bool has_unit = false;
    cbor::Item unit;
    bool has_base_time = false;
    cbor::Item base_time;
};

/// Goes through the records of a pack. What follows a refusal is not to be read, and a pack in which any
/// record is refused is refused as a whole: read all of it before obeying any.
class Records {
 public:
    /// Args: `timed` names the records that may carry a base time.
    Records(Bytes content, const Address& device, std::string_view timed);

    /// `none` and a record, `none` and no record at the end (`at_end`), or why the pack is refused:
    /// `not_cbor`, `too_deep`, `duplicate_key`, `not_senml`, `not_understood`, `wrong_device`, `bad_pack`.
    Refusal next(Record& record);

    bool at_end() const { return left_ == 0; }

 private:
    Refusal take(Record& record);

    cbor::Cursor cursor_;
    Label<32> base_name_;
    std::string_view timed_;
    std::uint64_t left_ = 0;
    bool named_ = false;
    Refusal refusal_ = Refusal::none;
};

/// The number of a record that counts something: an integer below 2^63. `bad_pack` otherwise.
Refusal count_of(const Record& record, std::uint64_t& count);

/// A base time as milliseconds since 1970, half to even; 0 for 0, "not known". `bad_pack` when it is none.
Refusal instant_ms(const cbor::Item& stated, std::uint64_t& unix_ms);

}  // namespace fajma
