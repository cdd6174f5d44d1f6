/// The monitor's core as a Linux process: a virtual monitor, for tests and demonstrations.
///
/// It prints a line of JSON for each reading once it is in the journal, and ends after `--count` of them when
/// everything is acknowledged.
#include <getopt.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "file_flash.hpp"
#include "link.hpp"
#include "machine.hpp"
#include "mbedtls_aead.hpp"
#include "monitor.hpp"

using namespace fajma;

namespace {

constexpr std::uint64_t look_every_ms = 100;  // at least, whatever else there is to wait for

volatile std::sig_atomic_t asked_to_stop = 0;

struct Options {
    host::Broker broker;
    std::string keys;
    std::string flash;
    std::size_t sectors = 256;   // a mebibyte: 15 000 readings
    std::uint64_t every_ms = 0;  // 0: as configured
    std::uint64_t count = ~std::uint64_t{0};
    bool clock_set = true;
    std::int64_t clock_offset_ms = 0;
};

/// What `fajma device keys` has made.
struct KeyFile {
    Address device{};
    std::uint16_t version = 0;
    std::vector<std::uint8_t> up;
    std::vector<std::uint8_t> down;
};

[[noreturn]] void give_up(const std::string& why) {
    std::fprintf(stderr, "fajma-monitor: %s\n", why.c_str());
    std::exit(1);
}

Options read_options(int count, char** arguments) {
    Options options;
    const option known[] = {
        {"host", 1, nullptr, 'h'},  {"port", 1, nullptr, 'p'},     {"ca", 1, nullptr, 'a'},
        {"cert", 1, nullptr, 'c'},  {"key", 1, nullptr, 'k'},      {"keys", 1, nullptr, 'y'},
        {"flash", 1, nullptr, 'f'}, {"sectors", 1, nullptr, 's'},  {"every-ms", 1, nullptr, 'e'},
        {"count", 1, nullptr, 'n'}, {"no-clock", 0, nullptr, 'x'}, {"clock-offset-ms", 1, nullptr, 'o'},
        {nullptr, 0, nullptr, 0}};
    for (int found; (found = getopt_long(count, arguments, "", known, nullptr)) != -1;) {
        switch (found) {
            case 'h':
                options.broker.host = optarg;
                break;
            case 'p':
                options.broker.port = std::atoi(optarg);
                break;
            case 'a':
                options.broker.ca = optarg;
                break;
            case 'c':
                options.broker.certificate = optarg;
                break;
            case 'k':
                options.broker.key = optarg;
                break;
            case 'y':
                options.keys = optarg;
                break;
            case 'f':
                options.flash = optarg;
                break;
            case 's':
                options.sectors = std::strtoul(optarg, nullptr, 10);
                break;
            case 'e':
                options.every_ms = std::strtoull(optarg, nullptr, 10);
                break;
            case 'n':
                options.count = std::strtoull(optarg, nullptr, 10);
                break;
            case 'x':
                options.clock_set = false;
                break;
            case 'o':
                options.clock_offset_ms = std::strtoll(optarg, nullptr, 10);
                break;
            default:
                std::exit(2);
        }
    }
    if (options.keys.empty() || options.flash.empty() || options.broker.ca.empty() ||
        options.broker.certificate.empty() || options.broker.key.empty()) {
        give_up("needs --ca, --cert, --key, --keys and --flash");
    }
    return options;
}

std::vector<std::uint8_t> unhex(const std::string& text) {
    std::vector<std::uint8_t> octets;
    for (std::size_t at = 0; at + 1 < text.size(); at += 2) {
        octets.push_back(static_cast<std::uint8_t>(std::strtoul(text.substr(at, 2).c_str(), nullptr, 16)));
    }
    return octets;
}

KeyFile read_keys(const std::string& path) {
    std::ifstream file(path);
    const nlohmann::json stated = nlohmann::json::parse(file, nullptr, false);
    if (!stated.is_object()) {
        give_up(path + " does not hold the keys of a monitor");
    }
    KeyFile keys;
    const std::vector<std::uint8_t> address = unhex(stated.value("device", ""));
    keys.version = stated.value("version", std::uint16_t{0});
    keys.up = unhex(stated.value("up", ""));
    keys.down = unhex(stated.value("down", ""));
    if (address.size() != sizeof keys.device.octets || keys.version == 0 || keys.up.size() != key_bytes ||
        keys.down.size() != key_bytes) {
        give_up(path + " does not hold the keys of a monitor");
    }
    std::copy(address.begin(), address.end(), keys.device.octets);
    return keys;
}

/// Flash with a journal in it. A new one comes to its name when it is formatted: enrolment is done then.
void ensure_flash(const Options& options, std::uint16_t enrolment) {
    if (::access(options.flash.c_str(), F_OK) == 0) {
        return;
    }
    const std::string unfinished = options.flash + ".new";
    if (!host::FileFlash::create(unfinished, options.sectors)) {
        give_up(unfinished + " cannot be made");
    }
    host::FileFlash flash(unfinished);
    if (!flash.error().empty() || !Journal(flash).format(enrolment * Journal::numbers_per_enrolment, Config()) ||
        std::rename(unfinished.c_str(), options.flash.c_str()) != 0) {
        give_up(options.flash + " cannot be made");
    }
}

/// A patient who is well: rhythms of breathing and of a slow hour, until a real pulse wave takes their place.
Reading synthetic(std::uint64_t now_ms) {
    constexpr double turn = 6.283185307179586;
    const double seconds = static_cast<double>(now_ms) / 1000;
    Reading reading;
    const auto whole = [](double value) { return static_cast<std::int32_t>(std::lround(value)) * scale; };
    reading.set(Measure::heart_rate,
                whole(76 + 4 * std::sin(turn * seconds / 15) + 3 * std::sin(turn * seconds / 3600)));
    reading.set(Measure::spo2, whole(97 + std::sin(turn * seconds / 97)));
    const double sixteenths = std::lround((36.9 + 0.2 * std::sin(turn * seconds / 3600)) * 16);
    reading.set(Measure::temperature, static_cast<std::int32_t>(sixteenths) * 625);
    reading.quality = 95;
    reading.contact = Contact::on;
    return reading;
}

void tell(const Reading& reading) {
    std::printf("{\"seq\":%llu,\"boot\":%u,\"mono_ms\":%llu,\"at_ms\":%llu,\"heart_rate\":%d}\n",
                static_cast<unsigned long long>(reading.number), reading.boot,
                static_cast<unsigned long long>(reading.mono_ms), static_cast<unsigned long long>(reading.unix_ms),
                reading.value(Measure::heart_rate) / scale);
    std::fflush(stdout);
}

/// Connects again and again, waiting longer each time.
class Connection {
 public:
    Connection(host::Link& link, Monitor& monitor, Clock& clock, Random& random)
        : link_(link), monitor_(monitor), clock_(clock), random_(random) {}

    /// Attends to the network for so long at most. True: something may be said.
    bool run(std::uint64_t for_ms) {
        if (!open_) {
            const std::uint64_t now_ms = clock_.mono_ms();
            if (now_ms < again_ms_) {
                ::usleep(static_cast<useconds_t>(std::min(for_ms, again_ms_ - now_ms) * 1000));
                return false;
            }
            open_ = link_.connect();
            ready_ = false;
            give_up_ms_ = now_ms + Reconnection::attempt_within_ms;
        }
        if (!open_ || !link_.run(static_cast<int>(for_ms)) || (!link_.ready() && clock_.mono_ms() > give_up_ms_)) {
            open_ = ready_ = false;
            std::uint8_t random[4];
            random_.fill(random, sizeof random);
            again_ms_ = clock_.mono_ms() + reconnection_.wait_ms(static_cast<std::uint32_t>(get_big(random, 4)));
            return false;
        }
        if (link_.ready() && !ready_) {
            ready_ = true;
            reconnection_.succeeded();
            monitor_.connected();
        }
        return ready_;
    }

 private:
    host::Link& link_;
    Monitor& monitor_;
    Clock& clock_;
    Random& random_;
    Reconnection reconnection_;
    bool open_ = false;
    bool ready_ = false;
    std::uint64_t again_ms_ = 0;
    std::uint64_t give_up_ms_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
    const Options options = read_options(count, arguments);
    const KeyFile keys = read_keys(options.keys);
    ensure_flash(options, keys.version);
    host::FileFlash flash(options.flash);
    if (!flash.error().empty()) {
        give_up(flash.error());
    }
    Journal journal(flash);
    if (journal.open() != Journal::Opened::sound) {
        give_up(options.flash + " holds no journal that can be read: enrol the monitor again");
    }
    host::SystemClock clock(options.clock_set, options.clock_offset_ms);
    host::SystemRandom random;
    MbedtlsAead up(keys.up.data());
    MbedtlsAead down(keys.down.data());
    const auto monitor = std::make_unique<Monitor>(clock, random, journal, Key{keys.device, keys.version, up},
                                                   Key{keys.device, keys.version, down});
    host::Link link(options.broker, keys.device, [&](std::string_view topic, std::uint8_t* payload, std::size_t size) {
        monitor->hear(topic, payload, size);  // what is refused is as if nothing had come
    });
    if (!link.error().empty()) {
        give_up(link.error());
    }
    std::signal(SIGTERM, [](int) { asked_to_stop = 1; });
    std::signal(SIGINT, [](int) { asked_to_stop = 1; });

    Connection connection(link, *monitor, clock, random);
    const PowerPlan plan = PowerPolicy().plan(true, 100, false);
    const Topic topic = topic_of(keys.device, Channel::vitals);
    std::uint64_t measured = 0;
    std::uint64_t due_ms = 0;
    while (asked_to_stop == 0 && (measured < options.count || !journal.empty())) {
        const std::uint64_t now_ms = clock.mono_ms();
        if (measured < options.count && now_ms >= due_ms) {
            due_ms = now_ms + (options.every_ms > 0 ? options.every_ms : monitor->config().period_ms);
            Reading reading = synthetic(now_ms);
            if (!monitor->measure(reading)) {
                give_up(options.flash + " takes nothing more");
            }
            ++measured;
            tell(reading);
        }
        if (link.ready()) {
            const Bytes payload = monitor->outgoing(plan);
            if (payload.size > 0) {
                link.publish(topic, payload);
            }
        }
        const std::uint64_t left_ms = due_ms > now_ms && measured < options.count ? due_ms - now_ms : look_every_ms;
        connection.run(std::min(left_ms, look_every_ms));
    }
    link.leave();
    return 0;
}
