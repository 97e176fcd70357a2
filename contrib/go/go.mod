// SPDX-License-Identifier: LGPL-2.1-or-later

module machine1-bridge/contrib/go

go 1.24.0 // Debian 13's

// One line for the library and the generator, whose output is made for it. v0.4.0, the last release, receives no file
// descriptors; this commit of its main branch does, which a shell needs. sdvarlink receives them too, but the module
// proxy served none of its versions when this was chosen.
require github.com/varlink/go v0.4.1-0.20261015173642-c935be0c53f7

// ioctl(2) on terminals, and poll(2). The last version for this Go.
require golang.org/x/sys v0.41.0

tool github.com/varlink/go/cmd/varlink-go-interface-generator
