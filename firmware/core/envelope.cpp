#include "envelope.hpp"

#include <cstring>

#include "cbor.hpp"

namespace fajma {
namespace {

constexpr std::uint8_t tag_16 = 0xd0;
constexpr std::uint64_t label_algorithm = 1;
constexpr std::uint64_t label_key_id = 4;
constexpr std::uint64_t label_nonce = 5;
constexpr std::uint64_t a256gcm = 3;
constexpr std::size_t key_id_bytes = 8;
constexpr std::size_t max_protected_bytes = 64;  // ours has 13; the longest spelling that parses has 53
constexpr std::size_t max_associated_bytes = 128;

struct Envelope {
    Bytes protected_header;
    Bytes nonce;
    Bytes ciphertext;
    Address device;
    std::uint16_t version;
};

/// The associated data (RFC 9052, section 5.3).
Bytes enc_structure(std::uint8_t (&buffer)[max_associated_bytes], Bytes protected_header, std::string_view topic) {
    cbor::Writer writer(buffer, sizeof buffer);
    writer.array(3);
    writer.text("Encrypt0");
    writer.bytes(protected_header);
    writer.bytes({reinterpret_cast<const std::uint8_t*>(topic.data()), topic.size()});
    return writer.written();
}

bool is_label(const cbor::Item& key, std::uint64_t label) {
    return key.kind == cbor::Kind::whole && key.argument == label;
}

Refusal parse_protected(Bytes header, Envelope& envelope) {
    const Refusal unsound = cbor::check(header);
    if (unsound != Refusal::none) {
        return unsound;
    }
    cbor::Cursor cursor(header);
    const cbor::Item map = cursor.next();
    if (map.kind != cbor::Kind::map) {
        return Refusal::not_cose;
    }
    cbor::Item algorithm;
    cbor::Item key_id;
    for (std::uint64_t index = 0; index < map.argument; ++index) {
        const cbor::Item key = cursor.next();
        cbor::Cursor value = cursor;
        cursor.skip();
        if (is_label(key, label_algorithm)) {
            algorithm = value.next();
        } else if (is_label(key, label_key_id)) {
            key_id = value.next();
        }
    }
    if (algorithm.kind != cbor::Kind::whole || algorithm.argument != a256gcm) {
        return Refusal::wrong_algorithm;
    }
    if (map.argument != 2) {
        return Refusal::not_cose;
    }
    if (key_id.kind != cbor::Kind::bytes || key_id.bytes.size != key_id_bytes) {
        return Refusal::bad_key_id;
    }
    std::memcpy(envelope.device.octets, key_id.bytes.data, sizeof envelope.device.octets);
    envelope.version = static_cast<std::uint16_t>(get_big(key_id.bytes.data + sizeof envelope.device.octets, 2));
    return envelope.version == 0 ? Refusal::bad_key_id : Refusal::none;
}

Refusal parse(Bytes payload, Envelope& envelope) {
    if (payload.size > max_sealed_bytes) {
        return Refusal::too_large;
    }
    if (payload.size == 0 || payload.data[0] != tag_16) {
        return Refusal::not_cose;
    }
    const Bytes value = payload.after(1);
    const Refusal unsound = cbor::check(value);
    if (unsound != Refusal::none) {
        return unsound;
    }
    cbor::Cursor cursor(value);
    const cbor::Item parts = cursor.next();
    if (parts.kind != cbor::Kind::array || parts.argument != 3) {
        return Refusal::not_cose;
    }
    const cbor::Item header = cursor.next();
    cbor::Cursor after_header = cursor;
    cursor.skip();
    const cbor::Item unprotected = after_header.next();
    const cbor::Item ciphertext = cursor.next();
    if (header.kind != cbor::Kind::bytes || unprotected.kind != cbor::Kind::map || unprotected.argument != 1 ||
        ciphertext.kind != cbor::Kind::bytes || ciphertext.bytes.size < tag_bytes) {
        return Refusal::not_cose;
    }
    const cbor::Item label = after_header.next();
    const cbor::Item nonce = after_header.next();
    if (!is_label(label, label_nonce) || nonce.kind != cbor::Kind::bytes || nonce.bytes.size != nonce_bytes) {
        return Refusal::not_cose;
    }
    envelope.protected_header = header.bytes;
    envelope.nonce = nonce.bytes;
    envelope.ciphertext = ciphertext.bytes;
    return parse_protected(header.bytes, envelope);
}

}  // namespace

Bytes seal(const Key& key, Random& random, std::string_view topic, std::uint8_t* content, std::size_t size) {
    std::uint8_t key_id[key_id_bytes];
    std::memcpy(key_id, key.device.octets, sizeof key.device.octets);
    put_big(key_id + sizeof key.device.octets, key.version, 2);
    std::uint8_t header[13];
    cbor::Writer inner(header, sizeof header);
    inner.map(2);
    inner.whole(label_algorithm);
    inner.whole(a256gcm);
    inner.whole(label_key_id);
    inner.bytes({key_id, sizeof key_id});

    std::uint8_t nonce[nonce_bytes];
    random.fill(nonce, sizeof nonce);
    // The head of the ciphertext depends on its length: written apart, then put right before the content.
    std::uint8_t front[seal_headroom];
    cbor::Writer outer(front, sizeof front);
    outer.tag(16);
    outer.array(3);
    outer.bytes(inner.written());
    outer.map(1);
    outer.whole(label_nonce);
    outer.bytes({nonce, sizeof nonce});
    const std::size_t sealed = size + tag_bytes;
    const std::size_t before = outer.written().size;
    const std::size_t head = sealed < 24 ? 1 : sealed <= 0xff ? 2 : 3;
    if (before + head + sealed > max_sealed_bytes) {
        return {};
    }
    std::uint8_t* const start = content - head - before;
    std::memcpy(start, front, before);
    start[before] = static_cast<std::uint8_t>(head == 1 ? 0x40 | sealed : head == 2 ? 0x58 : 0x59);
    put_big(start + before + 1, sealed, head - 1);

    std::uint8_t associated[max_associated_bytes];
    if (!key.aead.seal(nonce, enc_structure(associated, inner.written(), topic), content, size, content + size)) {
        return {};
    }
    return {start, before + head + sealed};
}

Refusal open(const Key& key, std::string_view topic, std::uint8_t* payload, std::size_t size, Bytes& content) {
    Address device{};
    Channel channel{};
    Refusal refusal = parse_topic(topic, device, channel);
    if (refusal != Refusal::none) {
        return refusal;
    }
    Envelope envelope{};
    refusal = parse({payload, size}, envelope);
    if (refusal != Refusal::none) {
        return refusal;
    }
    if (!(envelope.device == device)) {
        return Refusal::wrong_device;
    }
    if (!(key.device == device) || envelope.version != key.version) {
        return Refusal::unknown_key;
    }
    if (envelope.protected_header.size > max_protected_bytes) {
        return Refusal::not_cose;  // cannot be: see above
    }
    std::uint8_t associated[max_associated_bytes];
    const Bytes structure = enc_structure(associated, envelope.protected_header, topic);
    std::uint8_t* const text = payload + (envelope.ciphertext.data - payload);
    const std::size_t length = envelope.ciphertext.size - tag_bytes;
    if (!key.aead.open(envelope.nonce.data, structure, text, length, text + length)) {
        return Refusal::not_authentic;
    }
    content = {text, length};
    return Refusal::none;
}

}  // namespace fajma
