#include "samples.hpp"

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace fajma::testing {
namespace {

using Json = nlohmann::json;

/// 2026-03-02T14:02:00.123Z as milliseconds since 1970.
std::uint64_t unix_ms_of(const Json& stated) {
    if (stated.is_null()) {
        return 0;
    }
    const std::string text = stated.get<std::string>();
    std::tm parts{};
    parts.tm_year = std::stoi(text.substr(0, 4)) - 1900;
    parts.tm_mon = std::stoi(text.substr(5, 2)) - 1;
    parts.tm_mday = std::stoi(text.substr(8, 2));
    parts.tm_hour = std::stoi(text.substr(11, 2));
    parts.tm_min = std::stoi(text.substr(14, 2));
    parts.tm_sec = std::stoi(text.substr(17, 2));
    return static_cast<std::uint64_t>(timegm(&parts)) * 1000 + std::stoul(text.substr(20, 3));
}

std::int32_t value_of(const std::string& text) {
    const std::size_t point = text.find('.');
    std::string decimals = point == std::string::npos ? "" : text.substr(point + 1);
    decimals.resize(4, '0');
    return std::stoi(text.substr(0, point)) * scale + std::stoi(decimals);
}

Entry entry_of(const Json& item) {
    Entry entry;
    if (item.contains("first")) {
        entry.is_gap = true;
        entry.gap = {std::stoull(item["first"].get<std::string>()), std::stoull(item["count"].get<std::string>()),
                     item["overwritten"].get<bool>()};
        return entry;
    }
    Reading& reading = entry.reading;
    reading.number = std::stoull(item["seq"].get<std::string>());
    reading.boot = item["boot"].get<std::uint32_t>();
    reading.mono_ms = std::stoull(item["mono_ms"].get<std::string>());
    reading.unix_ms = unix_ms_of(item["measured_at"]);
    const char* const names[measures] = {"heart_rate", "spo2", "temperature", "systolic", "diastolic"};
    for (std::size_t index = 0; index < measures; ++index) {
        if (item["values"].contains(names[index])) {
            reading.set(static_cast<Measure>(index), value_of(item["values"][names[index]].get<std::string>()));
        }
    }
    if (!item["quality"].is_null()) {
        reading.quality = item["quality"].get<std::uint8_t>();
    }
    if (!item["contact"].is_null()) {
        reading.contact = item["contact"].get<bool>() ? Contact::on : Contact::off;
    }
    return entry;
}

Pack pack_of(const Json& stated) {
    Pack pack{std::stoull(stated["oldest"].get<std::string>()),
              stated["boot"].get<std::uint32_t>(),
              std::stoull(stated["sent_ms"].get<std::string>()),
              {}};
    for (const Json& item : stated["items"]) {
        pack.entries.push_back(entry_of(item));
    }
    return pack;
}

Octets payload_of(const Json& stated) {
    if (stated.is_string()) {
        return unhex(stated.get<std::string>());
    }
    const Octets once = unhex(stated["repeat"].get<std::string>());
    Octets octets;
    for (int left = stated["times"].get<int>(); left > 0; --left) {
        octets.insert(octets.end(), once.begin(), once.end());
    }
    return octets;
}

Sample sample_of(const std::string& name, const Json& stated) {
    const Json& expect = stated["expect"];
    Sample sample{name,
                  stated["topic"].get<std::string>(),
                  unhex(stated["key"].get<std::string>()),
                  payload_of(stated["payload"]),
                  {},
                  {},
                  stated.value("canonical", false),
                  expect.value("error", ""),
                  {},
                  {}};
    if (stated.contains("plaintext")) {
        sample.nonce = unhex(stated["nonce"].get<std::string>());
        sample.plaintext = unhex(stated["plaintext"].get<std::string>());
    }
    if (sample.canonical && expect.contains("pack")) {
        sample.pack = pack_of(expect["pack"]);
    }
    if (expect.contains("ack")) {
        sample.ack = {std::stoull(expect["ack"]["committed"].get<std::string>()), unix_ms_of(expect["ack"]["at"])};
    }
    return sample;
}

}  // namespace

Octets unhex(const std::string& text) {
    Octets octets;
    for (std::size_t at = 0; at + 1 < text.size(); at += 2) {
        octets.push_back(static_cast<std::uint8_t>(std::stoi(text.substr(at, 2), nullptr, 16)));
    }
    return octets;
}

std::vector<Sample> samples() {
    std::vector<Sample> found;
    for (const auto& file : std::filesystem::directory_iterator(FAJMA_SAMPLES)) {
        std::ifstream stream(file.path());
        found.push_back(sample_of(file.path().stem().string(), Json::parse(stream)));
    }
    std::sort(found.begin(), found.end(), [](const Sample& one, const Sample& other) { return one.name < other.name; });
    return found;
}

}  // namespace fajma::testing
