// SPDX-License-Identifier: LGPL-2.1-or-later
fn main() {
    gst_plugin_version_helper::info()
}
