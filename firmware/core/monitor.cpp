#include "monitor.hpp"

#include "ack.hpp"
#include "senml.hpp"

namespace fajma {

bool Monitor::measure(Reading& reading) {
    reading.mono_ms = clock_.mono_ms();
    const std::uint64_t now_ms = clock_.unix_ms();
    // A clock that says what no pack may state would have each pack refused, for ever: it is as good as not set.
    reading.unix_ms = now_ms >= first_absolute_ms && now_ms < year_10000_ms ? now_ms : 0;
    buzzer_.take(reading, journal_.config(), reading.mono_ms);
    return journal_.add(reading);
}

Bytes Monitor::outgoing(const PowerPlan& plan) {
    const std::uint64_t now_ms = clock_.mono_ms();
    const bool rests = sent_ && now_ms - sent_ms_ < plan.send_every_ms;
    if (journal_.empty() || !window_.open(now_ms) || rests) {
        return {};
    }
    PackWriter pack(buffer_ + seal_headroom, content_bytes, up_.device, journal_.oldest(), journal_.boot(), now_ms);
    Journal::Walk walk(journal_);
    Entry entry;
    std::uint64_t last = 0;
    while (pack.entries() < pack_most && walk.next(entry) && pack.add(entry)) {
        last = entry.last();
    }
    const Bytes content = pack.finish();
    std::uint8_t* const start = buffer_ + (content.data - buffer_);
    const Topic topic = topic_of(up_.device, Channel::vitals);
    const Bytes payload = seal(up_, random_, topic.text(), start, content.size);
    std::uint8_t random[4];
    random_.fill(random, sizeof random);
    window_.sent(last, now_ms, static_cast<std::uint32_t>(get_big(random, sizeof random)));
    sent_ = true;
    sent_ms_ = now_ms;
    return payload;
}

Refusal Monitor::hear(std::string_view topic, std::uint8_t* payload, std::size_t size) {
    Bytes content;
    const Refusal refusal = open(down_, topic, payload, size, content);
    if (refusal != Refusal::none) {
        return refusal;
    }
    Address device{};
    Channel channel{};
    parse_topic(topic, device, channel);
    switch (channel) {
        case Channel::ack:
            return take_ack(content);
        case Channel::config:
            return take_config(content);
        default:
            return Refusal::bad_topic;
    }
}

Refusal Monitor::take_ack(Bytes content) {
    Ack ack;
    const Refusal refusal = read_ack(content, down_.device, ack);
    if (refusal != Refusal::none) {
        return refusal;
    }
    if (!journal_.acknowledge(ack.committed)) {
        return Refusal::stale;  // an old one again, or of what was never measured: its time counts as little
    }
    window_.settled(journal_.oldest());
    const std::uint64_t ours = clock_.unix_ms();
    const std::uint64_t apart = ours > ack.unix_ms ? ours - ack.unix_ms : ack.unix_ms - ours;
    if (apart > clock_tolerance_ms) {
        clock_.set_unix_ms(ack.unix_ms);
    }
    return Refusal::none;
}

Refusal Monitor::take_config(Bytes content) {
    Config config = journal_.config();
    const Refusal refusal = read_config(content, down_.device, config);
    if (refusal == Refusal::none) {
        journal_.obey(config);
    }
    return refusal;
}

}  // namespace fajma
