/// What the core says of an acknowledgement on each line of standard input (hex): for comparing it with Python.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "ack.hpp"

using namespace fajma;

int main() {
    const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};
    for (std::string line; std::getline(std::cin, line);) {
        std::vector<std::uint8_t> octets;
        for (std::size_t at = 0; at + 1 < line.size(); at += 2) {
            octets.push_back(static_cast<std::uint8_t>(std::strtoul(line.substr(at, 2).c_str(), nullptr, 16)));
        }
        Ack ack;
        const Refusal refusal = read_ack({octets.data(), octets.size()}, device, ack);
        std::printf("%s %llu %llu\n", code(refusal), static_cast<unsigned long long>(ack.committed),
                    static_cast<unsigned long long>(ack.unix_ms));
    }
    return 0;
}
