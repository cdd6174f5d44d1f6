/// The connection to the broker: MQTT 5 over TLS 1.3 with the device's certificate, by libmosquitto.
#pragma once

#include <mosquitto.h>

#include <cstdint>
#include <functional>
#include <string>

#include "identity.hpp"

namespace fajma::host {

struct Broker {
    std::string host = "127.0.0.1";
    int port = 8883;
    std::string ca;
    std::string certificate;
    std::string key;
};

/// Tells when it is ready, when it is lost, and what is heard; all of it from within `run`.
class Link {
 public:
    using Hear = std::function<void(std::string_view topic, std::uint8_t* payload, std::size_t size)>;

    Link(const Broker& broker, const Address& device, Hear hear);
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    /// What is wrong with the certificates, in words; empty for nothing.
    const std::string& error() const { return error_; }

    /// Begins to connect; false when nobody answers.
    bool connect();

    /// Does what the network wants done, for so long at most; false when the connection is over.
    bool run(int for_ms);

    /// Whether acknowledgements are heard, so that something may be said.
    bool ready() const { return ready_; }

    void publish(const Topic& topic, Bytes payload);

    /// Leaves so that the broker says that we are away.
    void leave();

 private:
    Broker broker_;
    Address device_;
    Hear hear_;
    mosquitto* client_;
    int ack_subscription_ = 0;
    bool ready_ = false;
    bool over_ = false;
    std::string error_;
};

}  // namespace fajma::host
