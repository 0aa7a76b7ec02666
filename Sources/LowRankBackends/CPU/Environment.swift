// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc

/// The value of an environment variable, nil where it is not set or empty.
func environmentVariable(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
}

/// The choice that an environment variable names, nil where it is not set. A name that is none of them counts as not
/// set, and standard error says so: nothing else can be told of a variable that is read in the midst of other work.
func environmentChoice<Choice>(_ variable: String, among choices: [(name: String, choice: Choice)]) -> Choice? {
    guard let wanted = environmentVariable(variable) else { return nil }
    if let found = choices.first(where: { $0.name == wanted }) { return found.choice }
    let names = choices.map(\.name).joined(separator: ", ")
    var message = "lowrank_swift: \(variable): expected one of \(names), got \(wanted); it is ignored\n"
    message.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
    return nil
}
