// Operand lists of inline PTX: wgmma names every accumulator register of a thread.
#pragma once

#define NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7" ", " \
  "%8, %9, %10, %11, %12, %13, %14, %15" ", " \
  "%16, %17, %18, %19, %20, %21, %22, %23" ", " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40 \
  NAMES_32 ", " "%32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_64 \
  NAMES_40 ", " "%40, %41, %42, %43, %44, %45, %46, %47" ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55" ", " \
  "%56, %57, %58, %59, %60, %61, %62, %63"

#define OUTPUTS_8(d, i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUTPUTS_32(d) OUTPUTS_8(d, 0), OUTPUTS_8(d, 8), OUTPUTS_8(d, 16), OUTPUTS_8(d, 24)
#define OUTPUTS_40(d) OUTPUTS_32(d), OUTPUTS_8(d, 32)
#define OUTPUTS_64(d) OUTPUTS_40(d), OUTPUTS_8(d, 40), OUTPUTS_8(d, 48), OUTPUTS_8(d, 56)
