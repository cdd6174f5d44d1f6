#include "ack.hpp"

#include "senml.hpp"

namespace fajma {

Refusal read_ack(Bytes content, const Address& device, Ack& ack) {
    Records records(content, device, "ack");
    bool found = false;
    Ack read;
    for (;;) {
        const bool more = !records.at_end();
        Record record;
        Refusal refusal = records.next(record);
        if (refusal != Refusal::none) {
            return refusal;
        }
        if (!more) {
            break;
        }
        if (record.name != "ack") {
            continue;
        }
        if (found || !record.has_base_time) {
            return Refusal::bad_pack;
        }
        found = true;
        refusal = instant_ms(record.base_time, read.unix_ms);
        if (refusal == Refusal::none) {
            refusal = count_of(record, read.committed);
        }
        if (refusal != Refusal::none) {
            return refusal;
        }
        if (read.unix_ms == 0) {
            return Refusal::bad_pack;
        }
    }
    if (!found) {
        return Refusal::bad_pack;
    }
    ack = read;
    return Refusal::none;
}

}  // namespace fajma
