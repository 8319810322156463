# Makes one self-contained page of the files beside this one, and the policy that allows exactly its
# own script and style to run, and writes the C++ file that defines server/page.h.
#
# usage: cmake -DOUTPUT=page.cc -P embed.cmake

set(folder ${CMAKE_CURRENT_LIST_DIR})

# The bytes of a hash in hexadecimal, as base64 (RFC 4648): three hexadecimal digits are two of
# base64. 256 bits are 64 digits: 21 groups, and one digit that fills a last one with zeros.
function(hex_to_base64 hex result)
  set(alphabet ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(text "")
  foreach(begin RANGE 0 60 3)
    string(SUBSTRING ${hex} ${begin} 3 digits)
    math(EXPR high "0x${digits} >> 6")
    math(EXPR low "0x${digits} & 63")
    string(SUBSTRING ${alphabet} ${high} 1 high)
    string(SUBSTRING ${alphabet} ${low} 1 low)
    string(APPEND text ${high}${low})
  endforeach()
  string(SUBSTRING ${hex} 63 1 digit)
  math(EXPR last "0x${digit} << 2")
  string(SUBSTRING ${alphabet} ${last} 1 last)
  set(${result} "${text}${last}=" PARENT_SCOPE)
endfunction()

function(append_array name text result)
  string(HEX "${text}" hex)
  string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${hex}")
  string(REGEX REPLACE "((,?[^,]+){16})," "\\1,\n" bytes "${bytes}")
  set(${result} "${${result}}constexpr char ${name}[] = {\n${bytes}\n};\n" PARENT_SCOPE)
endfunction()

set(script "")
foreach(part client tokens charts view main)
  file(READ ${folder}/${part}.js text)
  string(APPEND script "${text}")
endforeach()
# Indentation and lines of comment stay at home; no string of the sources spans lines.
string(REGEX REPLACE "\n *(//[^\n]*)?" "\n" script "${script}")
string(REGEX REPLACE "\n\n+" "\n" script "${script}")
file(READ ${folder}/style.css style)
file(READ ${folder}/index.html page)
if("${script}${style}" MATCHES "</(script|style)")
  message(FATAL_ERROR "the script or the style would end its own element")
endif()
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")

string(SHA256 script_hash "${script}")
string(SHA256 style_hash "${style}")
hex_to_base64(${script_hash} script_hash)
hex_to_base64(${style_hash} style_hash)
string(CONCAT policy
  "default-src 'none'; script-src 'sha256-${script_hash}'; style-src 'sha256-${style_hash}'; "
  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")

set(code "// Made by page/embed.cmake.
#include \"server/page.h\"

namespace caravan {

namespace {

")
append_array(kPage "${page}" code)
append_array(kPolicy "${policy}" code)
string(APPEND code "
}  // namespace

std::string_view page_html() { return {kPage, sizeof(kPage)}; }

std::string_view page_csp() { return {kPolicy, sizeof(kPolicy)}; }

}  // namespace caravan
")
file(WRITE ${OUTPUT} "${code}")
