/// Flash in a file, each write on disk before it counts.
#pragma once

#include <cstdint>
#include <string>

#include "ports.hpp"

namespace fajma::host {

/// One process at a time: the file is locked as long as this lives.
class FileFlash final : public Flash {
 public:
    static constexpr std::size_t sector_size = 4096;

    /// Opens a file that `create` has made. Check `error` before anything else.
    explicit FileFlash(const std::string& path);
    ~FileFlash();
    FileFlash(const FileFlash&) = delete;
    FileFlash& operator=(const FileFlash&) = delete;

    /// Makes an erased file of so many sectors.
    static bool create(const std::string& path, std::size_t sectors);

    /// What is wrong, in words; empty for nothing.
    const std::string& error() const { return error_; }

    std::size_t sector_bytes() const override { return sector_size; }
    std::size_t sectors() const override { return sectors_; }
    bool erase(std::size_t sector) override;
    bool program(std::size_t offset, Bytes data) override;
    bool read(std::size_t offset, std::uint8_t* into, std::size_t size) const override;

 private:
    bool write(std::size_t offset, const std::uint8_t* data, std::size_t size);

    int file_ = -1;
    std::size_t sectors_ = 0;
    std::string error_;
};

}  // namespace fajma::host
