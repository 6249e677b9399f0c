// Package browsertest has a real browser be a device, by the page that gateways serve. Its module is apart so that what
// drives the browser is in no service.
package browsertest
