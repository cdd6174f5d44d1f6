#include "ota.hpp"

#include <cstring>

#include "cbor.hpp"

namespace fajma {
namespace {

constexpr std::uint8_t tag_18 = 0xd2;
constexpr std::uint8_t protected_header[] = {0xa1, 0x01, 0x27};  // {1: -8}: EdDSA (RFC 9053, section 2.2)
constexpr std::size_t signature_bytes = 64;
constexpr std::size_t max_payload_bytes = 160;

/// The four fields of the map, in this order and with these labels: deterministic, so there is one spelling.
bool read_fields(Bytes payload, Manifest& manifest, std::string_view& hardware) {
    if (cbor::check(payload) != Refusal::none) {
        return false;
    }
    cbor::Cursor cursor(payload);
    const cbor::Item map = cursor.next();
    if (map.kind != cbor::Kind::map || map.argument != 4) {
        return false;
    }
    constexpr cbor::Kind kinds[] = {cbor::Kind::whole, cbor::Kind::text, cbor::Kind::whole, cbor::Kind::bytes};
    for (std::uint64_t label = 1; label <= 4; ++label) {
        const cbor::Item key = cursor.next();
        const cbor::Item value = cursor.next();
        if (key.kind != cbor::Kind::whole || key.argument != label || value.kind != kinds[label - 1]) {
            return false;
        }
        switch (label) {
            case 1:
                manifest.version = value.argument;
                break;
            case 2:
                hardware = value.bytes.text();
                break;
            case 3:
                manifest.size = value.argument;
                break;
            default:
                if (value.bytes.size != sizeof manifest.sha256) {
                    return false;
                }
                std::memcpy(manifest.sha256, value.bytes.data, sizeof manifest.sha256);
        }
    }
    return true;
}

}  // namespace

Update read_manifest(Verifier& maker, Bytes message, std::string_view hardware, std::uint64_t running,
                     std::uint64_t room, Manifest& manifest) {
    if (message.size == 0 || message.data[0] != tag_18 || cbor::check(message.after(1)) != Refusal::none) {
        return Update::malformed;
    }
    cbor::Cursor cursor(message.after(1));
    const cbor::Item parts = cursor.next();
    if (parts.kind != cbor::Kind::array || parts.argument != 4) {
        return Update::malformed;
    }
    const cbor::Item header = cursor.next();
    if (header.kind != cbor::Kind::bytes || !(header.bytes == Bytes{protected_header, sizeof protected_header})) {
        return Update::malformed;
    }
    const cbor::Item unprotected = cursor.next();
    if (unprotected.kind != cbor::Kind::map || unprotected.argument != 0) {
        return Update::malformed;
    }
    const cbor::Item payload = cursor.next();
    if (payload.kind != cbor::Kind::bytes || payload.bytes.size > max_payload_bytes) {
        return Update::malformed;
    }
    const cbor::Item signature = cursor.next();
    if (signature.kind != cbor::Kind::bytes || signature.bytes.size != signature_bytes) {
        return Update::malformed;
    }
    std::uint8_t buffer[max_payload_bytes + 32];
    cbor::Writer structure(buffer, sizeof buffer);  // Sig_structure (RFC 9052, section 4.4)
    structure.array(4);
    structure.text("Signature1");
    structure.bytes(header.bytes);
    structure.bytes({});
    structure.bytes(payload.bytes);
    if (!structure.fits() || !maker.verify(structure.written(), signature.bytes)) {
        return Update::not_signed;
    }
    Manifest read;
    std::string_view meant_for;
    if (!read_fields(payload.bytes, read, meant_for)) {
        return Update::malformed;
    }
    if (meant_for != hardware) {
        return Update::other_hardware;
    }
    if (read.version <= running) {
        return Update::not_newer;
    }
    if (read.size == 0 || read.size > room) {
        return Update::too_large;
    }
    manifest = read;
    return Update::accepted;
}

}  // namespace fajma
