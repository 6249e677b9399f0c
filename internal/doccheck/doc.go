// Package doccheck has tests only: they hold the documentation against the
// repository. Its metrics are those that the code registers, and its links lead somewhere.
package doccheck
