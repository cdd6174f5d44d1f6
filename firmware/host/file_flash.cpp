#include "file_flash.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace fajma::host {

FileFlash::FileFlash(const std::string& path) : file_(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    struct stat status {};
    if (file_ < 0 || ::fstat(file_, &status) != 0) {
        error_ = path + ": " + std::strerror(errno);
    } else if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
        error_ = path + " is in use: a monitor runs already";
    } else if (status.st_size < 2 * static_cast<off_t>(sector_size) || status.st_size % sector_size != 0) {
        error_ = path + " is not the flash of a monitor";
    } else {
        sectors_ = static_cast<std::size_t>(status.st_size) / sector_size;
    }
}

FileFlash::~FileFlash() {
    if (file_ >= 0) {
        ::close(file_);
    }
}

bool FileFlash::create(const std::string& path, std::size_t sectors) {
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) {
        return false;
    }
    const std::vector<std::uint8_t> erased(sector_size, 0xFF);
    bool made = true;
    for (std::size_t sector = 0; made && sector < sectors; ++sector) {
        made = ::write(file, erased.data(), erased.size()) == static_cast<ssize_t>(erased.size());
    }
    return ::close(file) == 0 && made;
}

bool FileFlash::erase(std::size_t sector) {
    const std::vector<std::uint8_t> erased(sector_size, 0xFF);
    return write(sector * sector_size, erased.data(), erased.size());
}

bool FileFlash::program(std::size_t offset, Bytes data) {
    std::vector<std::uint8_t> cells(data.size);
    if (!read(offset, cells.data(), cells.size())) {
        return false;
    }
    for (std::size_t index = 0; index < data.size; ++index) {
        cells[index] &= data.data[index];  // as NOR flash does: bits are only cleared
    }
    return write(offset, cells.data(), cells.size());
}

bool FileFlash::read(std::size_t offset, std::uint8_t* into, std::size_t size) const {
    return ::pread(file_, into, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
}

bool FileFlash::write(std::size_t offset, const std::uint8_t* data, std::size_t size) {
    return ::pwrite(file_, data, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size) &&
           ::fdatasync(file_) == 0;
}

}  // namespace fajma::host
