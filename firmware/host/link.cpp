#include "link.hpp"

#include <mqtt_protocol.h>

#include <cstring>

namespace fajma::host {
namespace {

constexpr int keepalive_s = 30;
constexpr int verify_peer = 1;
constexpr int first_failure = 0x80;  // reason codes (MQTT 5, section 2.4)
constexpr char online[] = "{\"online\":true}";
constexpr char offline[] = "{\"online\":false}";

std::string text_of(const Topic& topic) { return std::string(topic.text()); }

}  // namespace

Link::Link(const Broker& broker, const Address& device, Hear hear)
    : broker_(broker), device_(device), hear_(std::move(hear)) {
    mosquitto_lib_init();
    Label<12> name;
    name.add_hex(device.octets, sizeof device.octets, "0123456789ABCDEF");
    client_ = mosquitto_new(std::string(name.text()).c_str(), true, this);
    mosquitto_int_option(client_, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    int wrong =
        mosquitto_tls_set(client_, broker.ca.c_str(), nullptr, broker.certificate.c_str(), broker.key.c_str(), nullptr);
    if (wrong == MOSQ_ERR_SUCCESS) {
        wrong = mosquitto_tls_opts_set(client_, verify_peer, "tlsv1.3", nullptr);
    }
    if (wrong != MOSQ_ERR_SUCCESS) {
        error_ = std::string("certificates: ") + mosquitto_strerror(wrong);
        return;
    }
    mosquitto_will_set_v5(client_, text_of(topic_of(device, Channel::status)).c_str(), sizeof offline - 1, offline, 1,
                          true, nullptr);
    mosquitto_connect_v5_callback_set(
        client_, [](mosquitto* client, void* self, int reason, int, const mosquitto_property*) {
            auto* const link = static_cast<Link*>(self);
            if (reason != 0) {
                link->over_ = true;
                return;
            }
            const std::string acks = text_of(topic_of(link->device_, Channel::ack));
            const std::string configs = text_of(topic_of(link->device_, Channel::config));
            mosquitto_subscribe_v5(client, &link->ack_subscription_, acks.c_str(), 0, 0, nullptr);
            mosquitto_subscribe_v5(client, nullptr, configs.c_str(), 1, 0, nullptr);
        });
    mosquitto_subscribe_v5_callback_set(
        client_, [](mosquitto*, void* self, int which, int count, const int* reasons, const mosquitto_property*) {
            auto* const link = static_cast<Link*>(self);
            if (which != link->ack_subscription_) {
                return;
            }
            if (count < 1 || reasons[0] >= first_failure) {  // nothing would ever be acknowledged
                link->over_ = true;
                return;
            }
            link->ready_ = true;
            const std::string status = text_of(topic_of(link->device_, Channel::status));
            mosquitto_publish_v5(link->client_, nullptr, status.c_str(), sizeof online - 1, online, 1, true, nullptr);
        });
    mosquitto_message_v5_callback_set(
        client_, [](mosquitto*, void* self, const mosquitto_message* message, const mosquitto_property*) {
            std::string copy(static_cast<const char*>(message->payload), static_cast<std::size_t>(message->payloadlen));
            static_cast<Link*>(self)->hear_(message->topic, reinterpret_cast<std::uint8_t*>(copy.data()), copy.size());
        });
    mosquitto_disconnect_v5_callback_set(client_, [](mosquitto*, void* self, int, const mosquitto_property*) {
        static_cast<Link*>(self)->over_ = true;
    });
}

Link::~Link() {
    mosquitto_destroy(client_);
    mosquitto_lib_cleanup();
}

bool Link::connect() {
    ready_ = false;
    over_ = false;
    return mosquitto_connect_bind_v5(client_, broker_.host.c_str(), broker_.port, keepalive_s, nullptr, nullptr) ==
           MOSQ_ERR_SUCCESS;
}

bool Link::run(int for_ms) {
    const int wrong = mosquitto_loop(client_, for_ms, 1);
    if (wrong != MOSQ_ERR_SUCCESS || over_) {
        ready_ = false;
        return false;
    }
    return true;
}

void Link::publish(const Topic& topic, Bytes payload) {
    mosquitto_publish_v5(client_, nullptr, text_of(topic).c_str(), static_cast<int>(payload.size), payload.data, 1,
                         false, nullptr);
}

void Link::leave() {
    if (ready_) {
        mosquitto_disconnect_v5(client_, MQTT_RC_DISCONNECT_WITH_WILL_MSG, nullptr);
        mosquitto_loop(client_, 100, 1);
    }
}

}  // namespace fajma::host
