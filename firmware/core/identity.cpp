#include "identity.hpp"

namespace fajma {
namespace {

constexpr std::string_view prefix = "fajma/v2/";
constexpr std::string_view channels[] = {"vitals", "ack", "config", "ota", "status"};

int upper_hex(char digit) {
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

}  // namespace

Topic topic_of(const Address& device, Channel channel) {
    Topic topic;
    topic.add(prefix);
    topic.add_hex(device.octets, sizeof device.octets, "0123456789ABCDEF");
    topic.add("/");
    topic.add(channels[static_cast<std::size_t>(channel)]);
    return topic;
}

Refusal parse_topic(std::string_view topic, Address& device, Channel& channel) {
    // Not substr: it throws, if only in theory, and the device has nothing to catch with.
    if (topic.size() < prefix.size() || std::string_view(topic.data(), prefix.size()) != prefix) {
        return Refusal::bad_topic;
    }
    topic.remove_prefix(prefix.size());
    const std::size_t slash = topic.find('/');
    if (slash == std::string_view::npos) {
        return Refusal::bad_topic;
    }
    const std::string_view name(topic.data(), slash);
    topic.remove_prefix(slash + 1);
    std::size_t found = 0;
    while (found < sizeof channels / sizeof *channels && topic != channels[found]) {
        ++found;
    }
    if (found == sizeof channels / sizeof *channels) {
        return Refusal::bad_topic;
    }
    if (name.size() != 2 * sizeof device.octets) {
        return Refusal::bad_device;
    }
    for (std::size_t index = 0; index < sizeof device.octets; ++index) {
        const int high = upper_hex(name[2 * index]);
        const int low = upper_hex(name[2 * index + 1]);
        if (high < 0 || low < 0) {
            return Refusal::bad_device;
        }
        device.octets[index] = static_cast<std::uint8_t>(high << 4 | low);
    }
    channel = static_cast<Channel>(found);
    return Refusal::none;
}

Label<32> base_name(const Address& device) {
    Label<32> name;
    name.add("urn:dev:mac:");
    name.add_hex(device.octets, 3, "0123456789abcdef");
    name.add("ffff");
    name.add_hex(device.octets + 3, 3, "0123456789abcdef");
    name.add(":");
    return name;
}

}  // namespace fajma
