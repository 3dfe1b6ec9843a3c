"""Takes the kernel out of its compressed image: QEMU starts it (by PVH) half a second sooner than the image.

vmlinux.py BZIMAGE VMLINUX"""
import struct
import subprocess
import sys

with open(sys.argv[1], 'rb') as file:
    image = file.read()
# The header of Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset and payload_length at 0x248.
sectors = (image[0x1f1] or 4) + 1
offset, length = struct.unpack_from('<II', image, 0x248)
payload = image[sectors * 512 + offset:sectors * 512 + offset + length]
PROGRAMS = {b'\x02\x21\x4c\x18': ['lz4', '-dc'], b'\xfd7zXZ': ['xz', '-dcq'], b'\x28\xb5\x2f\xfd': ['zstd', '-dcq'],
            b'\x1f\x8b': ['gzip', '-dc']}
command = next(command for magic, command in PROGRAMS.items() if payload.startswith(magic))
# The last four bytes are the size, which the programs take for something that is too much.
kernel = subprocess.run(command, input=payload[:-4], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
if kernel[:4] != b'\x7fELF':
    sys.exit('%s: %s made no kernel of it' % (sys.argv[1], command[0]))
with open(sys.argv[2], 'wb') as file:
    file.write(kernel)
